//go:build shmsim

package ring

// Plant names a bug to turn on, so that the explorer can be seen to find it:
//
//	fill     a cell is committed before it is filled
//	look     the consumer looks for the last time and says then that it sleeps
//	wake     the waker wakes first and changes the futex then
//	bell     the waker says first that it has rung a bell, and rings it then
//	repair   repair aborts cells that are committed
//	release  the consumer releases cells before it has read them
//	room     the consumer does not look for producers that wait for room
//	fulllook a producer that has said that it sleeps does not look for room again
//	open     a new consumer wakes nobody who waits for room
//	openodd  a new consumer wakes only those whom the one before has not begun to wake
//	repairwake  a producer that repairs does not wake whom the dead one was about to wake
//
// Set before the tasks start.
var Plant string

func planted(bug string) bool { return Plant == bug }
