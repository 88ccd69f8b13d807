package demo

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/internal/table"
	"github.com/mainzdb/mainz/ltdb"
)

// Result is what a run came to. All fields stay; more may come.
type Result struct {
	Clients     int     `json:"clients"`
	TraceEvents int     `json:"trace_events"` // in one pass
	Processes   int     `json:"processes"`    // traced ones: the goroutines of a pass
	Seconds     float64 `json:"seconds"`      // of replay
	Passes      int     `json:"passes"`       // the last one ends early, when the time is up

	Events    uint64  `json:"events"` // opens that were granted, and closes
	OpsPerS   float64 `json:"ops_per_s"`
	Conflicts uint64  `json:"conflicts"`  // opens that met a share mode against them
	Triggered uint64  `json:"triggered"`  // of these, granted after they had waited
	GaveUp    uint64  `json:"gave_up"`    // of these, after GiveUp
	Waits     uint64  `json:"waits"`      // for a record's lock, in the kernel
	LateWakes uint64  `json:"late_wakes"` // waits whose wake-up never came
	Records   int     `json:"records"`    // different files

	RecordsLeft int    `json:"records_left"` // after all passes together
	PiecesLeft  int    `json:"pieces_left"`  // in the clients' indexes, at the end
	CheckErrors int    `json:"check_errors"`
	AckedLost   uint64 `json:"acked_lost"` // entries said to be stored that were not there
	Damaged     uint64 `json:"damaged"`    // records that nobody can have stored, entries that were out already

	BypassOps   uint64  `json:"bypass_ops"`   // operations done without mainzd
	RingOps     uint64  `json:"ring_ops"`     // and those that it was asked for
	BypassShare float64 `json:"bypass_share"` // of both together

	Kills     int     `json:"kills"`      // of clients
	CleanupMS float64 `json:"cleanup_ms"` // from the kill until its entries were out; 0: never
	// until an opener that waited for one of its files had it; 0: no file was its alone
	TriggerMS      float64 `json:"trigger_ms"`
	EntriesCleaned int     `json:"entries_cleaned"` // that the killed client left
	OwnerDied      int     `json:"owner_died"`      // locks that it held or waited for

	DaemonKills int `json:"daemon_kills"` // of mainzd
	// from a kill until a call that came in meanwhile was answered; the longest
	DaemonAnsweredMS float64 `json:"daemon_answered_ms"`
	DaemonRestartMS  float64 `json:"daemon_restart_ms"` // the same from the start of the next mainzd
	stoodStill       uint64  // times that clients did nothing without mainzd, though they had much to do
	DaemonDownOps    uint64  `json:"daemon_down_ops"` // files that clients have opened while there was no mainzd

	Latency map[string]Quantiles `json:"latency_ns"` // "open", "fetch", "close", "wait", and with "ring_" in front

	Problems []string `json:"problems,omitempty"` // none: all is well
}

// Quantiles are of one operation. An open that has to wait for another to be
// closed is a "wait", from the first attempt until it is granted.
type Quantiles struct {
	N    uint64 `json:"n"`
	P50  uint64 `json:"p50"`
	P99  uint64 `json:"p99"`
	P999 uint64 `json:"p999"`
}

func quantiles(h *histogram.Histogram) Quantiles {
	return Quantiles{h.N, uint64(h.Quantile(0.5)), uint64(h.Quantile(0.99)), uint64(h.Quantile(0.999))}
}

// count takes what the clients have counted.
func (r *Result) count(total *counts, times map[string]*histogram.Histogram) {
	r.Events, r.Conflicts, r.Triggered, r.GaveUp = total.Events, total.Conflicts, total.Triggered, total.GaveUp
	r.Waits, r.LateWakes = total.Waits, total.Late
	r.AckedLost += total.Lost
	r.Damaged += total.Damaged
	r.OpsPerS = float64(total.Events) / r.Seconds
	r.BypassOps, r.RingOps = total.Bypass, total.Ring
	if all := total.Bypass + total.Ring; all > 0 {
		r.BypassShare = float64(total.Bypass) / float64(all)
	}
	r.Latency = map[string]Quantiles{}
	for name, h := range times {
		r.Latency[name] = quantiles(h)
	}
}

// check takes what the walk through the store has found, when everybody had
// left.
func (r *Result) check(report *ltdb.Report) {
	r.CheckErrors = report.Broken
	r.Problems = append(r.Problems, report.Errors...)
	if report.Locked > 0 {
		r.CheckErrors++
		r.Problems = append(r.Problems, fmt.Sprintf("%d records are still locked", report.Locked))
	}
	r.PiecesLeft = report.Pieces + report.Orphans
}

// judge says what is wrong with the counts.
func (r *Result) judge() {
	bad := func(n uint64, what string) {
		if n > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%d %s", n, what))
		}
	}
	bad(r.AckedLost, "acknowledged opens are lost")
	bad(r.Damaged, "damaged records, or entries that came back")
	bad(uint64(r.RecordsLeft), "records are left after their passes")
	bad(uint64(r.PiecesLeft), "pieces are left in the indexes of clients that are gone")
	bad(uint64(r.CheckErrors), "invariants of the store are broken")
	bad(r.LateWakes, "waits were not woken when they should have been")
	bad(r.stoodStill, "times the clients stood still while there was no mainzd")
	if r.Events == 0 {
		r.Problems = append(r.Problems, "nothing was replayed")
	}
}

// titles are the operations in the table.
var titles = map[string]string{
	"open": "open", "fetch": "look before a close", "close": "close", "wait": "open that waits",
	"ring_open": "open through the ring", "ring_fetch": "look through the ring",
	"ring_close": "close through the ring", "ring_wait": "open that waits, through the ring",
}

// Print writes the table for people.
func (r *Result) Print(w io.Writer) error {
	t := table.New(w)
	row := t.Row
	row("clients", "%d processes, for %d traced ones", r.Clients, r.Processes)
	row("replayed", "%d events of %d files, %d passes in %.1f s", r.Events, r.Records, r.Passes, r.Seconds)
	row("operations per second", "%.0f", r.OpsPerS)
	for _, op := range operationNames {
		if q := r.Latency[op]; q.N > 0 {
			row(titles[op], "p50 %s, p99 %s, p99.9 %s", nanoseconds(q.P50), nanoseconds(q.P99), nanoseconds(q.P999))
		}
	}
	row("by bypass", "%.2f %% of %d operations, the others through the ring", 100*r.BypassShare, r.BypassOps+r.RingOps)
	row("conflicts", "%d opens: %d got their file by a trigger, %d gave up after %s", r.Conflicts, r.Triggered,
		r.GaveUp, GiveUp)
	row("waits for a lock", "%d", r.Waits)
	if r.Kills > 0 {
		row("killed", "%d client with SIGKILL; it left %d entries and %d locks", r.Kills, r.EntriesCleaned, r.OwnerDied)
	}
	if r.CleanupMS > 0 {
		row("cleaned up", "%.1f ms after the kill; who waited for one of its files had it after %.1f ms", r.CleanupMS,
			r.TriggerMS)
	}
	if r.DaemonKills > 0 {
		row("mainzd killed", "%d times with SIGKILL; clients opened %d files before it was started again",
			r.DaemonKills, r.DaemonDownOps)
		row("mainzd answered", "%.1f ms after the kill, %.1f ms after its start, at the latest", r.DaemonAnsweredMS,
			r.DaemonRestartMS)
	}
	row("acknowledged and lost", "%d", r.AckedLost)
	row("records left", "%d", r.RecordsLeft)
	if r.CheckErrors == 0 {
		row("check of the store", "no invariant broken")
	} else {
		row("check of the store", "%d invariants broken", r.CheckErrors)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		_, err := fmt.Fprintf(w, "\nsomething is wrong:\n  %s\n", strings.Join(r.Problems, "\n  "))
		return err
	}
	_, err := fmt.Fprintln(w, "\nall is well: nothing lost, nothing damaged, nothing left behind")
	return err
}

// nanoseconds rounds to three digits.
func nanoseconds(n uint64) string {
	d := time.Duration(n)
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
}
