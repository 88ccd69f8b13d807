//go:build !race

package ltdb

func raceAcquire(uint64) {}

func raceRelease(uint64) {}
