// Package ring moves cells of 64 bytes between processes that share memory.
//
// A ring goes in one direction: the producers are the goroutines of one
// process, the consumer is one goroutine, mostly of another process. A cell is
// one cache line with its sequence number inside, so a message moves one line
// from CPU to CPU, and nothing else if both sides keep up.
//
//	claim, err := p.TryClaim()             // or Claim, which waits for room
//	claim.Commit(&ring.Message{Head: …})   // or Abort
//
//	n := c.Poll(64, func(m *ring.Message) { … })
//	if n == 0 {
//		err = c.Wait(ctx)
//	}
//
// # What it promises
//
// A message that was committed is delivered, in the order of the claims, and
// once, with one exception: if the consumer's process dies, its successor is
// given again what was given out by the Poll that had not returned. So a
// consumer that must not act twice keeps elsewhere what it has acted on; all
// but the last Poll's messages are never seen again.
//
// Nothing is dropped. A ring that is full is an ErrFull, or a wait with a
// context.
//
// There is no lock. A producer that is stopped between claim and commit holds
// up its own process's ring, and no other one.
//
// Who commits wakes a consumer that sleeps, and makes no system call if it
// does not. The consumer says that it sleeps before it looks for the last
// time, so no wake-up is lost.
//
// The process of a producer may die at any point; then whoever is next to it
// calls Repair, which aborts what was claimed and never committed: the consumer
// of a ring of requests, when it was told of the death, or the next producer of
// a ring of replies. Repair may die and be repeated. It must not run while the
// dead one's threads may still do (shm's recovery sees to that).
//
// Whatever stands in the memory, no function here panics, leaves the ring, or
// loops without end. The consumer reads each cell once, into memory of its own.
// Garbage in a cell or in the words of a producer makes garbage messages, or
// none; of that process's ring alone.
//
// Nothing here allocates, but for a wait that has a context which can end.
//
// # What it never does
//
// It does not look into messages. It starts no goroutine. It reads no clock, but
// for the CPU's counter in an idle loop.
//
// # Who may call what
//
// Init: who owns the ring while nobody has it open. A Producer is safe for the
// goroutines of its process, and no other process may have one of the same ring
// at a time; likewise a Consumer, for one goroutine at a time. A Claim is used
// up by Commit or Abort. A Bell is armed by one goroutine, and rung by any.
//
// # The memory
//
// All numbers are little endian.
//
//	  0  magic, number of cells            Init stores
//	128  claimed: position                 producers CAS; whoever repairs loads
//	256  released: position                the consumer stores, producers load
//	384  asleep                            odd: the consumer sleeps; see below
//	448  full                              odd: a producer sleeps until there is room
//	512  cells, 64 bytes each:
//	       0  sequence: (position + 1) << 1 | aborted, stored last
//	       8  head, two words
//	      24  40 bytes
//
// A position counts cells since Init and only grows; its lower bits are the
// cell's index. Claimed − released is at most the number of cells.
//
// A bell is a line of its own elsewhere, with a word like asleep: for a consumer
// of many rings, which sleeps on file descriptors (the dispatcher).
//
// # Sleeping
//
// Asleep and full count: even is awake, odd asleep, and each sleep has a number
// of its own. Who goes to sleep makes the word odd by a full barrier, looks
// again, and sleeps. Who changed something (by a full barrier as well) looks at
// the word then: one of both sees the other.
//
//   - Futex: the waker makes the word even first and then wakes, as the sleeper
//     may be between its last look and the kernel, which compares the word. If
//     the waker dies in between, the kernel tells of its death, which the
//     sleeper watches (Options.Wait).
//   - Bell: the waker rings first and makes the word even then: a byte in a FIFO
//     stays there until it is read, and the word is everybody's. If a waker dies
//     in between, or is stopped, the next one rings again; in the other order
//     it would keep all others from ringing.
//
// The number keeps a waker that was slow from taking the next sleep for the one
// it has ended.
package ring
