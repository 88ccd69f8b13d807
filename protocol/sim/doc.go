// Package sim runs whole clusters of protocol.Node over the real link, a simulated
// network, clocks and segments, from one seed, and checks what must hold.
//
// A run is a pure function of its Options and the code: no goroutine, no clock, no
// I/O. It draws a mix of faults from the seed (which [Result.Mix] tells), lets
// clients work through them, then heals everything and demands that all ends: S1
// to S8 of docs/protocol.md.
//
// A dispatcher dies between two events, or before any store of its own: see axe.go.
//
// What is simulated step by step, with time between the steps: datagrams, the
// dispatcher's steps, the passes over the handles, and every access that a local
// client's bypass makes to the segment (check, access, validate).
package sim
