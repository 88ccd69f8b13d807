package protocol_test

import (
	"strings"
	"testing"

	"github.com/mainzdb/mainz/protocol/sim"
	"github.com/mainzdb/mainz/protocol/wire"
)

// everyMessage makes a cluster send what it can send, the mishap first.
const everyMessage = `
cluster 3 POLICY
key a lmaster=1
key b lmaster=2
key p lmaster=2 pieces
MISHAP
do 0 store a v1
do 2 append a v2
do 1 lock a timeout=100
do 1 storeunlock a v3
do 0 lock a timeout=100
do 0 unlock a
do 2 fetch a
do 2 watch a 0
go 0.2 lock a
run 1ms
do 2 delete a
run 600ms
do 2 delete a
key c lmaster=2
do 0 store c x1
do 1 fetch c
do 2 store c x2
do 1 append c x3
do 0 piece p S
do 1 piece p X
do 1 piece p S
do 0 remove p
do 1 store b w1
do 0 store b w2
do 2 store b w3
do 1 fetch b
lose REQUEST_DMASTER
go 0 append c x4
run 170us
warm 0
boot 0
run 400ms
do 0 piece p S
cold 2
boot 2
run 700ms
do 1 fetch p
do 0 fetch b
cut 0|1
run 700ms
heal
run 900ms
`

// TestMessages: each message lost, repeated or late, once. Nothing breaks, all ends.
func TestMessages(t *testing.T) {
	var unseen []string
	for op := range wire.Op(128) {
		if !op.Valid() {
			continue
		}
		seen := false
		for _, verb := range []string{"lose OP", "repeat OP", "late OP 3ms", "late OP 200ms"} {
			for _, policy := range []string{"never", "always"} {
				mishap := strings.ReplaceAll(verb, "OP", op.String())
				script := strings.NewReplacer("POLICY", policy, "MISHAP", mishap).Replace(everyMessage)
				transcript, failures := sim.Script(script)
				for _, f := range failures {
					t.Errorf("%s, policy %s: %v", mishap, policy, f)
				}
				seen = seen || strings.Contains(transcript, "("+strings.Fields(verb)[0]+": "+op.String()+" ")
			}
		}
		if !seen {
			unseen = append(unseen, op.String())
		}
	}
	// The databases of this scenario are fixed, and no node leaves.
	if got := strings.Join(unseen, " "); got != "DB_INFO REPLY_DB_INFO TRAVERSE REPLY_TRAVERSE OFFER OPEN_DB DB_TABLE" {
		t.Errorf("not sent in this scenario: %s", got)
	}
	for _, op := range strings.Fields("DB_INFO REPLY_DB_INFO TRAVERSE REPLY_TRAVERSE OFFER OPEN_DB DB_TABLE") {
		for _, verb := range []string{"lose OP", "repeat OP", "late OP 3ms", "late OP 200ms"} {
			mishap := strings.ReplaceAll(verb, "OP", op)
			transcript, failures := sim.Script(strings.Replace(everyOther, "MISHAP", mishap, 1))
			for _, f := range failures {
				t.Errorf("%s: %v", mishap, f)
			}
			if !strings.Contains(transcript, "("+strings.Fields(verb)[0]+": "+op+" ") {
				t.Errorf("%s is not sent in this scenario", op)
			}
		}
	}
}

// everyOther sends what everyMessage does not.
const everyOther = `
cluster 3 always open
key a lmaster=1
key b lmaster=2
MISHAP
open 0 1 kv
do 0 store a v1
do 0 store b v2
open 1 1 kv
open 1 7 pieces
do 1 append b v3
traverse 0 1
traverse 1 1
warm 1
boot 1
run 600ms
do 1 fetch a
drain 1
do 0 fetch b
`

// leaderDies has all that a recovery can be about: a record under way, one that is
// owned, pieces of two nodes. Then the leader, node 0, dies.
const leaderDies = `
cluster 3 always
key a lmaster=2
key b lmaster=0
key p lmaster=2 pieces
do 0 store b v1
do 1 store a v1
do 1 piece p S
do 2 piece p S
when OP COLD 0
MISHAP
lose REQUEST_DMASTER
go 2 append a v2
run 100us
warm 2
boot 2
run 30ms
AGAIN
run 1200ms
do 1 fetch a
do 2 fetch b
do 1 fetch p
`

// TestLeaderDies: in every step of a recovery, cold or warm, for good or to come back
// at once, with the message at which it dies lost, repeated or late as well. The
// transcripts of ten of these cases are in testdata.
func TestLeaderDies(t *testing.T) {
	for _, op := range []string{"PREPARE", "PROMISE", "NEW_MAP", "CLAIM", "CLAIMS_DONE", "SETTLE", "VERDICT",
		"RESUPPLY", "SETTLED", "RECOVERED"} {
		died := 0
		for _, mishap := range []string{"", "lose OP", "repeat OP", "late OP 5ms", "late OP 300ms"} {
			for _, again := range []string{"cold", "cold boot 0", "warm", "warm boot 0"} {
				cold, boot, _ := strings.Cut(again, " ")
				script := strings.NewReplacer("COLD", cold, "MISHAP", strings.ReplaceAll(mishap, "OP", op), "OP", op,
					"AGAIN", boot).Replace(leaderDies)
				transcript, failures := sim.Script(script)
				for _, f := range failures {
					t.Errorf("%s, %q, %s: %v", op, mishap, again, f)
				}
				if strings.Contains(transcript, "(when: "+op) {
					died++
				}
			}
		}
		if died != 20 {
			t.Errorf("%s: the leader died in %d of 20 cases", op, died)
		}
	}
}
