package mainz

import (
	"context"
	"fmt"
	"strings"

	"github.com/mainzdb/mainz/internal/call"
)

// Epoch is what a recovery has changed: mainzd was started again, or nodes came or
// left.
type Epoch struct {
	Number  uint64
	Members Nodes
	Joined  Nodes // since the epoch that opened here before
	Left    Nodes
	Kept    bool // this node has the records that it had; those that nodes had which left may be lost
}

// Nodes is a set of node numbers: bit i is node i.
type Nodes uint64

// Has reports whether a node is in the set.
func (n Nodes) Has(node int) bool { return node >= 0 && node < 64 && n>>node&1 == 1 }

func (n Nodes) String() string {
	var s []string
	for i := range 64 {
		if n.Has(i) {
			s = append(s, fmt.Sprint(i))
		}
	}
	return "{" + strings.Join(s, " ") + "}"
}

// teller is the client's function for recoveries as package call has it.
func (o *options) teller() func(call.Epoch) {
	if o.events == nil {
		return nil
	}
	return func(e call.Epoch) {
		o.events(Epoch{e.Number, Nodes(e.Members), Nodes(e.Joined), Nodes(e.Left), e.Kept})
	}
}

// catchUp waits until the client knows of the epoch that a call may have seen.
func (c *Client) catchUp(ctx context.Context) {
	if c.ring != nil {
		c.ring.CatchUp(ctx, c.store.Segment().Gate().Epoch.Load())
	}
}
