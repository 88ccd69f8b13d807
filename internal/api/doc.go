// Command api writes what the public packages export to docs/api, a file for each:
// declarations without comments and bodies, in the order of their names, as they are
// on linux/amd64. A change of the API is a change of these files, which a reviewer
// sees; make api writes them, and make verify fails if they are not what the source
// says.
//
// Not public are internal packages, commands, and bench, which only cmd/mainz imports.
package main
