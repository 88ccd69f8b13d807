// Mainz is the command line to the store: it shows it at work, and measures
// and inspects it. mainz --help lists what it can do.
//
// # Output
//
// With -o table, the default, results are for people: no interface, and free
// to change. With -o json a command prints one object on standard output,
// whose fields are only ever added to. Nothing else goes there; progress goes
// to standard error, and only with -o table.
//
// # Errors
//
// An error is printed on standard error, with a hint of what to do next where
// there is one; with -o json as
//
//	{"error":{"code":3,"name":"not_running","message":"…","hint":"…"}}
//
// The exit code tells its kind:
//
//	0  ok
//	1  failure: anything that has no code of its own
//	2  usage: unknown command, flag or argument
//	3  not_running: the segment is not there
//	4  permission
//	5  incompatible: the segment is of another version
//	6  timeout
//	7  degraded: it ran, and found that something is wrong
//	8  not_found: no such record or database
//	9  busy: a lock is held, or a condition was refused
//	10 no_space: memory, handles or locks have run out
//	11 no_slots: as many clients are attached as the node has slots
//
// mainz status uses 3, 6, 7, 10 and 11 for what it finds; its help has the list.
//
// Names in JSON are in lower case with underscores, everywhere.
package main
