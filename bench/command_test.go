package bench

import (
	"strings"
	"testing"
)

func TestCommandsRoundTrip(t *testing.T) {
	for _, line := range []string{
		"open create /dev/shm/x 100000 64",
		"open attach /dev/shm/x 1 append",
		"pin 1",
		"run fetch uniform 50000us throughput 7 0",
		"run append hot 1000calls latency 18446744073709551615 123456789",
		"sum",
		"sample 1 2 1024",
	} {
		c, err := parseCommand(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		} else if c.String() != line {
			t.Errorf("%q became %q", line, c)
		}
	}
}

func TestBadCommandsAreRefused(t *testing.T) {
	for _, line := range []string{
		"", "close", "sum up",
		"open create x 0 64", "open borrow x 1 64", "open create x 1 63", "open create x 1 5000",
		"open create x 1 72.0", "open create x 1",
		"pin -1", "pin 5000", "pin",
		"run jump uniform 1us throughput 1 0", "run fetch lukewarm 1us throughput 1 0",
		"run fetch hot 0us throughput 1 0", "run fetch hot 1s throughput 1 0",
		"run fetch hot 99999999999us throughput 1 0",
		"run fetch hot 0calls throughput 1 0", "run fetch hot 1us both 1 0", "run fetch hot 1us latency -1 0",
		"run fetch hot 1us latency 1 -1",
		"sample 1 2", "sample x 2 64",
	} {
		if c, err := parseCommand(line); err == nil {
			t.Errorf("%q was understood as %#v", line, c)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add("open create /dev/shm/x 100000 64")
	f.Add("run batch8 uniform 50000us latency 7 99")
	f.Add("sample 18446744073709551615 0 append")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := parseCommand(line)
		if err != nil {
			return
		}
		// What was understood says the same when it is said again.
		again, err := parseCommand(c.String())
		if err != nil || again != c {
			t.Errorf("%q became %q, and that %#v, %v", line, c, again, err)
		}
		if strings.ContainsRune(c.String(), '\n') {
			t.Errorf("%q became more than one line", line)
		}
	})
}
