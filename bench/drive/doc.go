// Package drive runs one transport on one locked thread: the loop with its two
// ways to be idle, and two loads for it, an echo server and a pinger. They are
// what `mainz net` and `mainz bench net` consist of.
package drive
