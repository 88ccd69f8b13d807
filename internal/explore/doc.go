// Package explore runs small cases of code on shared memory under every
// interleaving of its tasks, and with their processes killed at every access.
//
// It runs the real code, not a model of it. In builds with the tag shmsim,
// package shm asks a scheduler before each access to a shared word. The
// scheduler is here: it lets one task run at a time, and before an access it
// may go on with another task, or let the task's process die there, which
// then makes no access any more. It stands in for the kernel's futexes and
// for the kernel's word about a death.
//
// A case is a function that builds fresh memory, some tasks on it, and checks
// of the outcome. It must be a function of the schedule alone: the same
// schedule makes the same accesses. (Time is faked, by testing/synctest. Maps
// must not be ranged over where the order reaches shared memory.)
//
// Exhaust tries all schedules with a limited number of preemptions and deaths
// (or any number), depth first, by running the case anew for each. Two things
// keep that small. A switch is tried only before an access to a word that
// several living tasks use and one of them writes: other accesses commute.
// And of two schedules that lead to the same state one is followed: the state
// is the content of memory and what each task has seen so far, which
// determines what it will do. States are kept as 64-bit hashes; among ten
// million states two with one hash have a chance of 1 in 400,000.
//
// Random tries schedules at random, for cases that are too large: few
// preemptions, at places drawn beforehand (as PCT does).
//
// What it does not see: the weak memory of the CPU (accesses happen in program
// order, as on amd64 but for the store buffer), accesses that do not go
// through package shm, and a death between two accesses, which is the same as
// one before the second.
//
// A violation comes with a trace and with a schedule that runs it again
// (Replay).
package explore
