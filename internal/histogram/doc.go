// Package histogram counts times: in buckets that are 0.8 % wide at most, from a
// nanosecond to 18 minutes. It allocates nothing when it counts. A Histogram belongs to
// one goroutine at a time.
//
// Package ltdb has buckets of its own, since they stand in shared memory.
package histogram
