// Package shm gives processes memory that they share and that survives their
// deaths: a segment on a ramdisk, typed words in it, latches, waiting, and the
// news that somebody who held something is gone.
//
//	seg, err := shm.Attach(ctx, "/dev/shm/mainz/prod/0/v1", layout)
//	…
//	c, err := seg.Join(ctx, shm.JoinOptions{Name: "worker", Repair: repair})
//	…
//	err = latch.Lock(c, c.HandleID(0)) // waits for the living, repairs the dead
//	…
//	latch.Unlock(c.HandleID(0))
//	err = c.Leave()
//
// # What it promises
//
// A segment has all its memory from the start: it is reserved when the file is
// made and touched when it is attached, so that a full disk is an ErrNoSpace
// there and never a SIGBUS later. (Unless somebody cuts the file or punches
// holes into it while it is mapped, which nothing can stop.)
//
// A file is looked at before it is mapped: one that is cut, foreign, copied, of
// another version, layout or boot of the kernel is an error that names both sides and
// what to do. A directory or file that a stranger could have put there, by a
// link, by a mode or as its owner, is not used.
//
// If a client's process dies, however it dies, the kernel marks its slot and
// wakes somebody who waits for it, about 0.1 ms later. Whoever notices claims
// the slot, makes sure that no thread of the dead process runs any more, and
// calls Repair. Repairs of one slot never overlap. A repairer may die as well:
// the next one recovers the repairer first and then does all of the work
// again. One that makes no step for 10 s and is stopped is evicted.
//
// Wait and wake lose nothing as long as the words are changed before they are
// woken. All waits are cut into slices of 20 ms all the same, as a process may
// be killed just after it was woken; Client.Slices counts how they end.
//
// Waiting, waking and latches do not allocate.
//
// Twice a second the guardian, and an observer's timer, look whether the file is
// still the one in the directory (Look). A deleted one is dead for everybody: who
// sees that closes the gate. Another one at the path ends the use in the process
// that sees it. Ended says why, and errors that a dead gate brings do so too.
//
// # What it never does
//
// It never lets a system call write into a segment, but for the kernel's own
// store at a guardian's death: that no thread of a dead process is in user
// mode any more would not prove that it writes nothing. Callers must keep that:
// no read(2) into a segment.
//
// It never takes a lock from a process that lives, at whatever age: deadlines
// belong to waiters. It never unmaps a segment under its users: after the last
// client has left a closed Segment, private zero pages take the mapping's
// place, and a zero gate means dead.
//
// It never starts a goroutine or a thread but the guardian of a client, from
// Join to Leave, and an observer's timer.
//
// # Who may call what
//
// The owner of a directory (the dispatcher, or who creates and wipes) holds
// LockOwner; Create takes it for itself otherwise. Any process that may write
// the file may Attach and Join, as often as it likes; a Segment and a Client are
// safe for many goroutines, and both are of use only in the process that made
// them. Who may only read it can AttachReadOnly. A process with the right to
// write the segment is trusted with the data in it.
//
// Nobody is killed because of what is written in a segment. A slot that is marked
// dead is recovered when the kernel says that its process has gone or is past its
// last instruction; else Recover reports false, and is asked again later. Evict is
// the only thing that kills: a stopped process which the kernel names for the slot.
//
// A process that replaces itself by execve while it is joined counts as dead as
// soon as the kernel has closed its files. The new program lives, and may join.
//
// What the slot's words say of a process can be forged; its lock and its socket can't,
// and they decide wherever there are any.
//
// A process in another PID namespace can't be seen from here. It counts as gone
// when the kernel has dropped its lock in the segment's file, which is when the
// last of its threads has ended.
//
// The heap stands in for a file in tests, under the race detector and on
// systems other than Linux (NewHeap). Nobody dies there but by SimulateDeath.
//
// # The segment
//
// All numbers are little endian; places are the same on every architecture.
//
//	     0  header, one page; written before the file gets its name, then constant
//	  4096  gate line
//	  4160  lease line
//	  8192  slots: the dispatcher's (number 4095), then clients 1 to n, 36 KiB each; with
//	        pages of more than 4 KiB they begin at the second page
//	     …  the areas of the layers above, in the order they asked, page-aligned
//
//	header                                gate line (the owner stores, all load)
//	   0  magic "MAINZSHM"                   0  gate: generation << 2 | 0 dead, 1 frozen, 2 open
//	   8  ABI major, minor                   8  epoch
//	  16  header size                       16  opened epoch
//	  20  ready, stored last                24  life
//	  24  checksum (FNV-1a) of the page     32  own VNN, map length, own place in the map
//	  32  layout hash
//	  40  features: must, may             lease line (the dispatcher stores, all load)
//	  56  size, creation time                0  deadline in ticks, all ones: none
//	  72  the kernel's boot id               8  deadline in nanoseconds of CLOCK_BOOTTIME
//	  88  node number, slots
//	  96  slot size, slot head size       slot
//	 104  handles per slot, huge pages       0  live: robust futex of the guardian
//	 112  8 parameters of the layers above   8  claim: who recovers this one
//	 176  16 areas: offset, size            16  progress of the recovery
//	 432  cluster                           64  PID, user, namespaces, start, joined at
//	 496  creator                           96  generation
//	 560  device, inode, birth, random id  128  name
//	                                      1024  the layers above
//
// Beside its slot a client holds a lock (OFD) in the segment's file, which begins at
// slot << 51 | (generation mod 64) << 45, unless somebody else has taken it. How long
// it is tells for which process it was taken. The bytes from 1 on are shared by the
// users of the upper layers' parts (TryShare, TryAlone).
//
// # A slot's life
//
//	live      claim
//	0         0        free
//	TID       0        a client: its guardian's robust futex, waiters bit set
//	DIED      0        dead: the kernel stored that
//	DIED      R        the client in slot R recovers it; void if R is dead, once R is recovered
//	DIED      joiner   a process without a slot takes it over; a robust futex as live is, void once that is DIED
//	0         R        for an instant: R has freed it
//	TID       R        the same, and somebody was quick
//
// PID is 0 outside of a client's time, and claims made from a slot are cleared
// before the slot is free.
package shm
