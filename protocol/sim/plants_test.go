package sim

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// quick are the planted bugs that random runs see soon.
var quick = []string{"no-fence", "ack-frozen", "same-vnn", "no-copy-claims", "no-epoch-check", "keep-rsn", "no-done-list", "forget-grants",
	"keep-dead-pieces", "move-locked", "journal-late", "stale-keeps", "store-without-lock", "old-ballot", "two-registrars", "no-table", "drain-full",
	"forget-moves", "no-event", "fresh-counts", "skip-record", "claim-anew", "claims-early", "any-progress", "park-behind-any", "lock-forgets", "old-look",
	// locks
	"lock-short", "lock-twice", "unlock-any", "forget-locks", "keep-given-up", "unlock-late", "lock-no-timeout", "held-for-nobody",
	// waiting
	"no-wake", "no-attend", "no-wake-expiry", "long-backoff", "timeout-early", "timeout-late", "new-waits",
	// what is full
	"batch-cut", "batch-early", "tries-cut",
	// leaks
	"keep-token", "keep-room", "keep-bytes", "keep-idle", "keep-place", "keep-ask", "keep-own-done", "keep-parked",
	// the dead
	"dead-first", "dead-append", "dead-give-up", "dead-erase", "dead-later",
	// the link
	"link-hole", "link-refused-window", "link-no-pump", "link-no-ack-timer", "link-drop-cancelled", "link-last-fragment", "link-keep-parts", "link-null-lost", "link-once"}

// aimed are those that need more of some faults to be seen soon.
var aimed = []string{"bypass-no-validate", "bypass-no-busy", "no-pass", "delete-gives-back", "ack-refused",
	"done-cut", "first-waiter", "parked-cut", "moved-cut"}

// told are those that a scenario of protocol/testdata shows.
var told = map[string]string{
	"lock-old-reqid":     "lock_asked_again",
	"restart-no-timer":   "lock_restart",
	"ack-frozen":         "lost_reply_in_recovery",
	"no-copy-claims":     "handover_recovery",
	"no-epoch-check":     "handover_sender_dies",
	"no-done-list":       "lost_reply_in_recovery",
	"journal-late":       "resupply_removal",
	"stale-keeps":        "partitions",
	"store-without-lock": "locks",
	"abandon-first":      "abandoned_done",
	"timeout-behind":     "late_done",
	"promise-twice":      "no_room_twice",
	"no-event":           "handover_recovery",
	"drain-full":         "drain",
	"no-table":           "databases",
	"two-registrars":     "databases",
	"lock-forgets":       "arbiter_stale",
	"cold-no-lock":       "arbiter_cold",
	"leader-file":        "arbiter_file",
	"old-recovered":      "drain",
	"old-incarnation":    "drain",
	"copy-without-want":  "handover_receiver_serves",
	"resupply-removing":  "removal_unanswered",
	"serve-no-lease":     "lease_over",
	"no-margin":          "drift",
	"no-clique":          "clique",
	"no-stickiness":      "late_prepare",
	plantNoRing:          "lock_handed",
	plantLiveLate:        "slow_append",
	plantNoValidateRead:  "slow_read",
	"waiter-moves":       "waiters_stay",
	"alive-by-pnn":       "piece_of_dead",
	"cold-counter":       "cold_start",
	"move-contended":     "hot_record",
	"dead-keeps-lock":    "lock_of_dead",
	"unlock-waits":       "pending_unlock",
	"abandoned-twice":    "abandoned_asked_again",
	"no-lock-default":    "lock_of_dead",
	"no-hold-off":        "stalls",
	"wait-for-ever":      "mute",
	"unnamed-piece":      "named_piece",
	"fault-opens":        "two_owners",
	"cold-start-clock":   "epochs_grow",
	"cold-own-clock":     "epochs_clocks",
	"keep-provisional":   "resupply_twice",
	"carry-all":          "no_room_through",
	"old-cursor":         "claims_interrupted",
	"timeout-late":       "late_request",
}

// excused are those that nothing is expected to show; docs/protocol.md says why.
var excused = []string{"grant-after-promise", "any-file", "lock-forever", "handle-no-lease"}

// TestEveryPlant: each is caught by one of the tests here, or excused.
func TestEveryPlant(t *testing.T) {
	for _, p := range AllPlants() {
		if _, ok := told[p.Name]; !ok && !slices.Contains(quick, p.Name) && !slices.Contains(aimed, p.Name) && !slices.Contains(excused, p.Name) {
			t.Errorf("%s: no test is there to catch it", p.Name)
		}
	}
}

// TestPlants: the checkers see what they are there for, in random runs. With -short
// only the first of the list.
func TestPlants(t *testing.T) {
	first := firstSeed(t)
	names := append(append([]string(nil), quick...), aimed...)
	if testing.Short() {
		names = quick[:6]
	}
	for n, name := range names {
		caught := false
		for i := range uint64(2000) {
			if r := Run(Options{Seed: first + i, Plant: name, Aim: n >= len(quick)}); len(r.Failures) > 0 {
				t.Logf("%-20s seed %d, the %d.: %v", name, r.Seed, i+1, r.Failures[0])
				caught = true
				break
			}
		}
		if !caught {
			t.Errorf("%s: 2,000 seeds from %d and nothing seen", name, first)
		}
	}
}

// TestToldPlants: a scenario holds, and does not with the bug.
func TestToldPlants(t *testing.T) {
	for plant, file := range told {
		b, err := os.ReadFile("../testdata/" + file + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		var good, bad []string
		for _, line := range strings.Split(string(b), "\n") {
			command, ok := strings.CutPrefix(line, "> ")
			if !ok {
				continue
			}
			good = append(good, command)
			if strings.HasPrefix(command, "cluster ") {
				command += " " + plant
			}
			bad = append(bad, command)
		}
		if _, failures := Script(strings.Join(good, "\n")); len(failures) > 0 {
			t.Errorf("%s: %v", file, failures[0])
		}
		if _, failures := Script(strings.Join(bad, "\n")); len(failures) == 0 {
			t.Errorf("%s with the bug %s: nothing seen", file, plant)
		}
	}
}
