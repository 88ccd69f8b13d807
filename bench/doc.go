// Package bench measures the store beside what one would take instead, on the
// same machine, in the same seconds, doing the same work.
//
// # What it promises
//
//   - Every contestant is a process of its own, led by the same lines on its
//     standard input (command.go): `mainz bench worker` for ours, mainz-peers
//     (peers/driver.c) for libtdb and for the floor of the hardware, a table
//     of sequence locks.
//   - All of them use the same keys, values, random sequence and page size
//     (workload.go, peers/workload.h), and verify every value they read. A
//     wrong value, a lost update or a failed call ends the run with an error:
//     there are no figures of a store that does not work.
//   - Contestants alternate in slices of at most 100 ms. A virtual machine may
//     be slowed by half for seconds at a time; so a ratio is taken between two
//     neighbouring slices, and what is reported is the median of these ratios
//     with its quartiles.
//   - Throughput is measured with no timer inside. Latency is measured in
//     slices of its own, with a serialised time stamp before and after each
//     call; operation "nop" tells what loop and time stamps cost on each side.
//
// # What it does not do
//
// It judges nothing: no figure makes it fail. It is no part of the client, and
// only cmd/mainz imports it.
package bench
