// Package netns makes network namespaces and veth pairs between them, for
// tests and measurements that must not touch the machine's own network. They
// have no name and go with the last process and descriptor that uses them.
package netns
