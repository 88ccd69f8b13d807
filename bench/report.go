package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/mainzdb/mainz/internal/table"
)

// Report is what a run measured.
type Report struct {
	Environment Environment `json:"environment"`
	Results     []Result    `json:"results"`
	Ratios      []Ratio     `json:"ratios"`
	RatioTitle  string      `json:"-"` // over the ratios in a text; "" that of the record store
}

// Environment is what a reader must know before comparing with another run.
type Environment struct {
	CPUModel    string   `json:"cpu_model"`
	CPUs        int      `json:"cpus"`
	Kernel      string   `json:"kernel"`
	Clocksource string   `json:"clocksource"`
	TimerStepNS float64  `json:"timer_step_ns"` // latencies are multiples of this
	LoadBefore  float64  `json:"load_before"`   // runnable tasks, average of the minute before
	PageSize    int      `json:"page_size"`
	HugePages   string   `json:"huge_pages"`
	GoVersion   string   `json:"go_version"`
	Commit      string   `json:"commit"`
	Peers       []string `json:"peers"` // versions of the libraries measured
	Quick       bool     `json:"quick"`
	SliceMS     float64  `json:"slice_ms"`
	Records     int      `json:"records"`
	Warnings    []string `json:"warnings"`
}

// Result is one contestant doing one thing. Latencies are of a whole call and
// include the time stamps (see operation nop), over all slices together; in suites net
// and ring they are the medians of those of the slices.
type Result struct {
	Suite      string  `json:"suite"`
	Op         string  `json:"op"`
	Peer       string  `json:"peer"`
	ValueBytes int     `json:"value_bytes"`
	Keys       string  `json:"keys"`
	Procs      int     `json:"procs"`
	Mops       float64 `json:"mops"` // million records a second, all processes: the median slice
	MopsMin    float64 `json:"mops_min"`
	MopsMax    float64 `json:"mops_max"`
	P50        float64 `json:"p50_ns"`
	P99        float64 `json:"p99_ns"`
	P999       float64 `json:"p999_ns"`
	Max        float64 `json:"max_ns"`
	Reps       int     `json:"reps"` // slices of each kind

	PacketsPerCore float64 `json:"packets_per_core,omitempty"` // sent and received a second; suite net
}

// Ratio says how many times cheaper we are than a peer: the median over pairs
// of neighbouring slices, and the quartiles.
type Ratio struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Q1    float64 `json:"q1"`
	Q3    float64 `json:"q3"`
	Pairs int     `json:"pairs"`
}

// quartiles interpolates between neighbours. NaN if there are no values.
func quartiles(values []float64) (q1, median, q3 float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := func(share float64) float64 {
		place := share * float64(len(sorted)-1)
		i := int(place)
		j := min(i+1, len(sorted)-1)
		return sorted[i] + (sorted[j]-sorted[i])*(place-float64(i))
	}
	return at(0.25), at(0.5), at(0.75)
}

// newRatio takes the pairwise ratios over[i] / under[i]. Pairs that no ratio
// can be taken of are left out; ok is false if none is left.
func newRatio(name string, over, under []float64) (r Ratio, ok bool) {
	var pairs []float64
	for i := range min(len(over), len(under)) {
		if over[i] > 0 && under[i] > 0 {
			pairs = append(pairs, over[i]/under[i])
		}
	}
	if len(pairs) == 0 {
		return Ratio{}, false
	}
	q1, median, q3 := quartiles(pairs)
	return Ratio{Name: name, Value: round(median), Q1: round(q1), Q3: round(q3), Pairs: len(pairs)}, true
}

// round keeps four digits: what is behind them changes with every run.
func round(x float64) float64 {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return x
	}
	unit := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*unit) / unit
}

// WriteJSON writes the report as one object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report as tables for people.
func (r *Report) WriteText(w io.Writer) error {
	e := r.Environment
	fmt.Fprintf(w, "%s, %d CPUs, Linux %s, clock %s in steps of %g ns, load before %.2f, pages of %d bytes (huge: %s), %s, commit %s\n",
		e.CPUModel, e.CPUs, e.Kernel, e.Clocksource, e.TimerStepNS, e.LoadBefore, e.PageSize, e.HugePages,
		e.GoVersion, e.Commit)
	fmt.Fprintf(w, "%d records, slices of %g ms, peers: %s\n", e.Records, e.SliceMS, strings.Join(e.Peers, ", "))
	for _, warning := range e.Warnings {
		fmt.Fprintf(w, "WARNING: %s\n", warning)
	}

	t := table.NewRight(w)
	fmt.Fprintln(t, "\noperation\tbytes\tkeys\tprocesses\tpeer\tMops/s\t[min to max]\tp50 ns\tp99\tp99.9\tmax\tslices\t")
	for _, x := range r.Results {
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%s\t%.4g\t[%.3g to %.3g]\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t\n",
			x.Op, x.ValueBytes, x.Keys, x.Procs, x.Peer, x.Mops, x.MopsMin, x.MopsMax, x.P50, x.P99, x.P999, x.Max,
			x.Reps)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Ratios) == 0 {
		return nil
	}
	t = table.New(w)
	title := r.RatioTitle
	if title == "" {
		title = "how many times cheaper we are"
	}
	fmt.Fprintf(t, "\n%s\tmedian\t[quartiles]\tpairs\n", title)
	for _, x := range r.Ratios {
		fmt.Fprintf(t, "%s\t%.3g\t[%.3g to %.3g]\t%d\n", x.Name, x.Value, x.Q1, x.Q3, x.Pairs)
	}
	return t.Flush()
}
