package demo

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
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
	Conflicts uint64  `json:"conflicts"` // opens that met a share mode against them
	GaveUp    uint64  `json:"gave_up"`   // of these, after GiveUp
	Waits     uint64  `json:"waits"`     // for a record's lock, in the kernel
	Records   int     `json:"records"`   // different files

	RecordsLeft int    `json:"records_left"` // after all passes together
	CheckErrors int    `json:"check_errors"`
	AckedLost   uint64 `json:"acked_lost"` // entries said to be stored that were not there
	Damaged     uint64 `json:"damaged"`    // records that nobody can have stored, entries that were out already

	BypassShare float64 `json:"bypass_share"` // of operations without a daemon: there is none

	Kills          int     `json:"kills"`
	CleanupMS      float64 `json:"cleanup_ms"`      // from the kill until its locks were free and its entries out
	EntriesCleaned int     `json:"entries_cleaned"` // that the killed client left
	OwnerDied      uint64  `json:"owner_died"`      // locks that were got from the killed client

	Latency map[string]Quantiles `json:"latency_ns"` // "open", "close"

	Problems []string `json:"problems,omitempty"` // none: all is well
}

// Quantiles are of one operation: from FetchLocked to the end of StoreUnlock,
// waiting for the lock included. The pauses of an open that conflicts are not.
type Quantiles struct {
	P50  uint64 `json:"p50"`
	P99  uint64 `json:"p99"`
	P999 uint64 `json:"p999"`
}

func quantiles(h *histogram) Quantiles {
	return Quantiles{h.quantile(0.5), h.quantile(0.99), h.quantile(0.999)}
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
	bad(uint64(r.CheckErrors), "invariants of the store are broken")
	if r.Events == 0 {
		r.Problems = append(r.Problems, "nothing was replayed")
	}
}

// Print writes the table for people.
func (r *Result) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("clients", "%d processes, for %d traced ones", r.Clients, r.Processes)
	row("replayed", "%d events of %d files, %d passes in %.1f s", r.Events, r.Records, r.Passes, r.Seconds)
	row("operations per second", "%.0f", r.OpsPerS)
	for _, op := range []string{"open", "close"} {
		q := r.Latency[op]
		row(op, "p50 %s, p99 %s, p99.9 %s", nanoseconds(q.P50), nanoseconds(q.P99), nanoseconds(q.P999))
	}
	row("conflicts", "%d opens, of which %d gave up after %s", r.Conflicts, r.GaveUp, GiveUp)
	row("waits for a lock", "%d", r.Waits)
	if r.Kills > 0 {
		row("killed", "%d client with SIGKILL; it left %d entries and %d locks", r.Kills, r.EntriesCleaned, r.OwnerDied)
		row("cleaned up", "%.1f ms after the kill", r.CleanupMS)
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
