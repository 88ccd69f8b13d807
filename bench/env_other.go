//go:build !linux

package bench

func environment(Options) (Environment, error) { return Environment{}, errLinux }

type times struct{}

func cpuTimes() times { return times{} }

func (times) stolenSince(times) float64 { return 0 }
