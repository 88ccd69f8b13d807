package bench

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
)

// The runner leads each process of a contestant by lines on its standard
// input. The process greets with one line of JSON ([greeting]) and answers
// each line by one more. The commands:
//
//	open create|attach PATH RECORDS FORMAT   make and preload a store, or join the one there
//	pin CPU                                  stay on one CPU
//	run OP KEYS LIMIT MODE SEED START        measure one slice
//	sum                                      read and check every record, add up the counters
//	sample SEED INDEX FORMAT                 show a key, a value and random draws
//
// FORMAT is the size of all values in bytes, or "append" for records that
// grow. LIMIT is a time ("50000us", of which the first tenth is not counted)
// or a number of calls ("1000calls"). MODE is throughput or latency. START is
// the CLOCK_MONOTONIC instant in nanoseconds at which to begin, the same for
// all processes of the slice; 0 is at once. The end of the input ends the
// process.
//
// peers/driver.c speaks the same.
const protocolVersion = 1

// op is what is measured.
type op uint8

const (
	opNop    op = iota // makes a key and does nothing: the loop and the timer
	opFetch            // a copy of one value
	opBatch8           // copies of eight values in one call, or as near as the contestant comes
	opRMW              // lock, fetch, change, store, unlock
	opStore            // blind store
	opAppend           // lock, fetch, add 32 bytes (start again after 512), store, unlock
)

var opNames = [...]string{"nop", "fetch", "batch8", "rmw", "store", "append"}

func (o op) String() string { return opNames[o] }

// keysPerCall is how many records one call touches.
func (o op) keysPerCall() uint64 {
	if o == opBatch8 {
		return batchSize
	}
	return 1
}

// format is the size of all values in bytes; 0 are records that grow.
type format int

const growing format = 0

func (f format) String() string {
	if f == growing {
		return "append"
	}
	return strconv.Itoa(int(f))
}

// bytes is the size that results are labelled with.
func (f format) bytes() int {
	if f == growing {
		return appendBytes
	}
	return int(f)
}

type openCommand struct {
	create  bool
	path    string
	records int
	format  format
}

func (c openCommand) String() string {
	how := "attach"
	if c.create {
		how = "create"
	}
	return fmt.Sprintf("open %s %s %d %v", how, c.path, c.records, c.format)
}

type pinCommand struct{ cpu int }

func (c pinCommand) String() string { return fmt.Sprintf("pin %d", c.cpu) }

// runCommand is one slice: limited by time or, if that is 0, by calls.
type runCommand struct {
	op      op
	hot     bool
	limit   time.Duration
	calls   uint64
	latency bool
	seed    uint64
	start   int64
}

func (c runCommand) String() string {
	limit := fmt.Sprintf("%dus", c.limit.Microseconds())
	if c.limit == 0 {
		limit = fmt.Sprintf("%dcalls", c.calls)
	}
	mode := "throughput"
	if c.latency {
		mode = "latency"
	}
	return fmt.Sprintf("run %v %s %s %s %d %d", c.op, keysName(c.hot), limit, mode, c.seed, c.start)
}

func keysName(hot bool) string {
	if hot {
		return "hot"
	}
	return "uniform"
}

type sumCommand struct{}

func (sumCommand) String() string { return "sum" }

type sampleCommand struct {
	seed, index uint64
	format      format
}

func (c sampleCommand) String() string {
	return fmt.Sprintf("sample %d %d %v", c.seed, c.index, c.format)
}

// command is one line: its String is what parseCommand reads.
type command interface{ String() string }

var errCommand = errors.New("the command is not understood")

// maxSlice bounds what one slice may be asked for: a worker does not look at
// its input before the slice is over.
const maxSlice = time.Minute

// parseCommand reads one line, without its line feed.
func parseCommand(line string) (command, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil, errCommand
	}
	var c command
	var err error
	switch args := words[1:]; {
	case words[0] == "open" && len(args) == 4:
		c, err = parseOpen(args)
	case words[0] == "pin" && len(args) == 1:
		var cpu uint64
		cpu, err = strconv.ParseUint(args[0], 10, 10)
		c = pinCommand{int(cpu)}
	case words[0] == "run" && len(args) == 6:
		c, err = parseRun(args)
	case words[0] == "sum" && len(args) == 0:
		c = sumCommand{}
	case words[0] == "sample" && len(args) == 3:
		c, err = parseSample(args)
	default:
		err = errCommand
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	return c, nil
}

func parseOpen(args []string) (command, error) {
	c := openCommand{create: args[0] == "create", path: args[1]}
	if !c.create && args[0] != "attach" {
		return nil, errCommand
	}
	records, err := strconv.ParseUint(args[2], 10, 31)
	if err != nil {
		return nil, err
	}
	if c.records = int(records); c.records == 0 {
		return nil, errors.New("at least one record is needed")
	}
	c.format, err = parseFormat(args[3])
	return c, err
}

func parseFormat(word string) (format, error) {
	if word == growing.String() {
		return growing, nil
	}
	n, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		return 0, err
	}
	if n < minValueBytes || n > maxValueBytes || n%8 != 0 {
		return 0, fmt.Errorf("values have %d to %d bytes, in steps of 8", minValueBytes, maxValueBytes)
	}
	return format(n), nil
}

func parseRun(args []string) (command, error) {
	var c runCommand
	var err error
	if c.op, err = parseOp(args[0]); err != nil {
		return nil, err
	}
	if c.hot = args[1] == "hot"; !c.hot && args[1] != "uniform" {
		return nil, errCommand
	}
	if us, ok := strings.CutSuffix(args[2], "us"); ok {
		n, err := strconv.ParseUint(us, 10, 63)
		if err != nil || n == 0 || n > uint64(maxSlice.Microseconds()) {
			return nil, fmt.Errorf("a slice lasts 1 to %d µs", maxSlice.Microseconds())
		}
		c.limit = time.Duration(n) * time.Microsecond
	} else if calls, ok := strings.CutSuffix(args[2], "calls"); ok {
		c.calls, err = strconv.ParseUint(calls, 10, 32)
		if err != nil || c.calls == 0 {
			return nil, fmt.Errorf("a slice has 1 to %d calls", uint32(math.MaxUint32))
		}
	} else {
		return nil, errCommand
	}
	if c.latency = args[3] == "latency"; !c.latency && args[3] != "throughput" {
		return nil, errCommand
	}
	if c.seed, err = strconv.ParseUint(args[4], 10, 64); err != nil {
		return nil, err
	}
	if c.start, err = strconv.ParseInt(args[5], 10, 64); err != nil || c.start < 0 {
		return nil, errCommand
	}
	return c, nil
}

func parseOp(word string) (op, error) {
	for o, name := range opNames {
		if word == name {
			return op(o), nil
		}
	}
	return 0, fmt.Errorf("operations are %s", strings.Join(opNames[:], ", "))
}

func parseSample(args []string) (command, error) {
	seed, err1 := strconv.ParseUint(args[0], 10, 64)
	index, err2 := strconv.ParseUint(args[1], 10, 64)
	f, err3 := parseFormat(args[2])
	return sampleCommand{seed, index, f}, errors.Join(err1, err2, err3)
}

// greeting is a contestant's first line.
type greeting struct {
	Protocol int    `json:"protocol"`
	Peer     string `json:"peer"`
	Version  string `json:"version"`
}

// answer is what a contestant says to a command. Which fields are set depends
// on the command; Error is set if it could not be obeyed.
type answer struct {
	Error string `json:"error,omitempty"`

	// of run
	Ops       uint64            `json:"ops,omitempty"`     // records touched in the measured part
	NS        uint64            `json:"ns,omitempty"`      // how long that took
	AllOps    uint64            `json:"all_ops,omitempty"` // with the part that was not measured
	LateNS    uint64            `json:"late_ns,omitempty"` // how long after START it began
	Errors    uint64            `json:"errors,omitempty"`  // wrong values and failed calls
	Why       string            `json:"why,omitempty"`     // the first of them
	MaxNS     uint64            `json:"max_ns,omitempty"`
	Histogram histogram.Buckets `json:"histogram,omitempty"`

	// of sum
	Sum uint64 `json:"sum,omitempty"`
	Bad uint64 `json:"bad,omitempty"` // records missing or wrong

	// of sample
	Key    string   `json:"key,omitempty"`
	Value  string   `json:"value,omitempty"`
	Draws  []uint64 `json:"draws,omitempty"`
	Bucket int      `json:"bucket,omitempty"`
}
