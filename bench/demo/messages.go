package demo

import "github.com/mainzdb/mainz/internal/histogram"

// command is what the parent tells a client.
type command struct {
	Do string `json:"do"`
}

const (
	doPass  = "pass"  // replay your share once
	doDrain = "drain" // open nothing more; the pass ends when all is closed
	doEnd   = "end"   // send the totals and end
)

// reply is what a client tells the parent.
type reply struct {
	Is      string           `json:"is"`
	Counts  counts           `json:"counts,omitzero"`
	Latency map[string]times `json:"latency,omitempty"` // ended
	Text    string           `json:"text,omitempty"`    // trouble, failed
}

// times is a histogram on its way.
type times struct {
	Max     uint64            `json:"max"`
	Buckets histogram.Buckets `json:"buckets"`
}

const (
	isReady    = "ready"
	isProgress = "progress"
	isPassed   = "passed"
	isTrouble  = "trouble" // something is wrong with the data, and was counted
	isFailed   = "failed"  // the client cannot go on
	isEnded    = "ended"
)

// counts are a client's totals so far.
type counts struct {
	Events    uint64 `json:"events"` // opens that were granted, and closes
	Conflicts uint64 `json:"conflicts"`
	GaveUp    uint64 `json:"gave_up"`
	Triggered uint64 `json:"triggered"`
	Waits     uint64 `json:"waits"`
	Late      uint64 `json:"late"`
	Bypass    uint64 `json:"bypass"` // operations
	Ring      uint64 `json:"ring"`
	Lost      uint64 `json:"lost"`
	Damaged   uint64 `json:"damaged"`
}

func (c *counts) add(o counts) {
	c.Events += o.Events
	c.Conflicts += o.Conflicts
	c.GaveUp += o.GaveUp
	c.Triggered += o.Triggered
	c.Waits += o.Waits
	c.Late += o.Late
	c.Bypass += o.Bypass
	c.Ring += o.Ring
	c.Lost += o.Lost
	c.Damaged += o.Damaged
}
