package demo

// command is what the parent tells a client.
type command struct {
	Do    string `json:"do"`
	Dead  owner  `json:"dead,omitzero"`   // clean: whose entries
	Part  int    `json:"part,omitempty"`  // clean: which of the records,
	Parts int    `json:"parts,omitempty"` // those of file % Parts == Part
}

const (
	doPass  = "pass"  // replay your share once
	doClean = "clean" // take a dead client's entries out
	doDrain = "drain" // open nothing more; the pass ends when all is closed
	doEnd   = "end"   // send the totals and end
)

// reply is what a client tells the parent.
type reply struct {
	Is     string   `json:"is"`
	Counts counts   `json:"counts,omitzero"`
	Found  []uint32 `json:"found,omitempty"` // cleaned: opens whose entries were taken out
	Open   []uint64 `json:"open,omitempty"`  // ended: histograms
	Close  []uint64 `json:"close,omitempty"`
	Text   string   `json:"text,omitempty"` // trouble, failed
}

const (
	isReady    = "ready"
	isProgress = "progress"
	isPassed   = "passed"
	isCleaned  = "cleaned"
	isTrouble  = "trouble" // something is wrong with the data, and was counted
	isFailed   = "failed"  // the client cannot go on
	isEnded    = "ended"
)

// counts are a client's totals so far.
type counts struct {
	Events    uint64 `json:"events"` // opens that were granted, and closes
	Conflicts uint64 `json:"conflicts"`
	Waits     uint64 `json:"waits"`
	GaveUp    uint64 `json:"gave_up"`
	Lost      uint64 `json:"lost"`
	Damaged   uint64 `json:"damaged"`
	OwnerDied uint64 `json:"owner_died"`
}

func (c *counts) add(o counts) {
	c.Events += o.Events
	c.Conflicts += o.Conflicts
	c.Waits += o.Waits
	c.GaveUp += o.GaveUp
	c.Lost += o.Lost
	c.Damaged += o.Damaged
	c.OwnerDied += o.OwnerDied
}
