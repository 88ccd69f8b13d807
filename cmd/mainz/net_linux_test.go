package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/mainzdb/mainz/internal/netns"
	"github.com/mainzdb/mainz/internal/testenv"
)

// mainzCommand is the command line in a process of its own.
func mainzCommand(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Args = append([]string{"mainz"}, args...)
	return cmd
}

// TestNetEchoAndPing: the two commands find each other over every way there is
// on a veth pair, and tell what they did.
func TestNetEchoAndPing(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	var ns [2]*netns.NS
	var ends [2]netns.End
	addrs := [2]string{"10.81.0.1", "10.81.0.2"}
	for i := range ns {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		ns[i] = n
		ends[i] = netns.End{NS: n, Name: []string{"mzc0", "mzc1"}[i],
			Addrs: []netip.Prefix{netip.MustParsePrefix(addrs[i] + "/24")}}
	}
	if err := netns.Veth(ends[0], ends[1], 1); err != nil {
		t.Fatal(err)
	}
	for mode, kind := range map[string]string{"udp": "udp", "xdp-generic": "xdp-generic", "xdp-copy": "xdp-native",
		"auto": "xdp-generic"} {
		t.Run(mode, func(t *testing.T) { echoAndPing(t, ns, addrs, mode, kind) })
	}
	t.Run("forced and not taken", func(t *testing.T) { forcedNotTaken(t, ends[0]) })
}

// forcedNotTaken: a peer on the same host is reached through the kernel alone, which
// is not what was asked for.
func forcedNotTaken(t *testing.T, end netns.End) {
	const us, other = "10.81.0.1", "10.81.0.3"
	err := end.NS.Do(func() error {
		l, err := netlink.LinkByName(end.Name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(other + "/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
	if err != nil {
		t.Fatal(err)
	}
	echo := mainzCommand(t, "net", "echo", "--listen", other, "--transport", "udp", us)
	if err := end.NS.Do(echo.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = echo.Process.Kill()
		_ = echo.Wait()
	}()
	ping := mainzCommand(t, "net", "ping", "--listen", us, "--transport", "xdp-generic", "--keep-privileges",
		"--count", "10", other)
	var out []byte
	var said bytes.Buffer
	ping.Stderr = &said
	err = end.NS.Do(func() (err error) {
		out, err = ping.Output()
		return err
	})
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != degraded.code || !strings.Contains(said.String(), "through the kernel") ||
		!bytes.Contains(out, []byte("10 sent")) {
		t.Errorf("%v: %s%s", err, &said, out)
	}
}

// TestBenchNet: every contestant has round trips and rates over both sizes, with
// percentiles, and ours is compared with each of the others.
func TestBenchNet(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP, testenv.TwoCPUs)
	// It starts itself, by its path: /proc/self/exe would run these tests again.
	cmd := exec.CommandContext(t.Context(), testenv.Program(t, "mainz"), "bench", "net", "--rounds", "1", "--slice",
		"10ms", "-o", "json")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || said.Len() > 0 {
		t.Fatalf("%v: %s", err, &said)
	}
	var report struct {
		Results []struct {
			Op, Peer       string
			ValueBytes     int     `json:"value_bytes"`
			P50            float64 `json:"p50_ns"`
			P99            float64 `json:"p99_ns"`
			P999           float64 `json:"p999_ns"`
			PacketsPerCore float64 `json:"packets_per_core"`
		}
		Ratios []struct{ Name string }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	peers := []string{"go-net", "udp", "xdp-generic", "xdp-native"}
	if _, err := exec.LookPath("cc"); err == nil {
		peers = append(peers, "c-udp")
	}
	got := map[string]bool{}
	for _, r := range report.Results {
		got[fmt.Sprintln(r.Op, r.Peer, r.ValueBytes)] = r.P50 > 0 && r.P99 >= r.P50 && r.P999 >= r.P99 &&
			r.PacketsPerCore > 0
	}
	for _, op := range []string{"rtt", "rate"} {
		for _, peer := range peers {
			for _, size := range []int{64, 1024} {
				if what := fmt.Sprintln(op, peer, size); !got[what] {
					t.Errorf("no result, or one without figures, of %s", what)
				}
			}
		}
	}
	// One ratio for each of the others, less one mode of ours, and one for the best.
	if len(report.Results) != 4*len(peers) || len(report.Ratios) != 4*(len(peers)-1) {
		t.Errorf("%d results and %d ratios of %d contestants:\n%s", len(report.Results), len(report.Ratios),
			len(peers), out)
	}
}

func echoAndPing(t *testing.T, ns [2]*netns.NS, addrs [2]string, mode, kind string) {
	flags := []string{"--transport", mode, "-o", "json"}
	if strings.HasPrefix(mode, "xdp") {
		flags = append(flags, "--keep-privileges")
	}
	args := func(what, us, to string, more ...string) []string {
		return slices.Concat([]string{"net", what, "--listen", us}, flags, more, []string{to})
	}
	echo := mainzCommand(t, args("echo", addrs[1], addrs[0]+":4379")...)
	stderr, err := echo.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var echoed bytes.Buffer
	echo.Stdout = &echoed
	if err := ns[1].Do(echo.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = echo.Process.Kill()
		_ = echo.Wait()
	}()
	log := bufio.NewReader(stderr)
	line, err := log.ReadString('\n')
	if testenv.Cgo && strings.Contains(line, "built with cgo") {
		return // which is what it promises to say then
	}
	if err != nil || !strings.HasPrefix(line, "echo: "+kind) {
		rest, _ := io.ReadAll(log)
		t.Fatalf("echo said %q: %v\n%s", line, err, rest)
	}

	ping := mainzCommand(t, args("ping", addrs[0], addrs[1], "--count", "300", "--size", "1000")...)
	var out []byte
	ping.Stderr = os.Stderr
	err = ns[0].Do(func() (err error) {
		out, err = ping.Output()
		return err
	})
	if err != nil {
		t.Fatalf("ping: %v\n%s", err, out)
	}
	var got struct {
		Kind   string
		Proven bool
		Ping   struct {
			Sent, Received, Lost uint64
			P50                  float64 `json:"p50_ns"`
		}
		Drops map[string]uint64
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// A pause of a second, which is not ours to rule out, makes one late.
	if p := got.Ping; got.Kind != kind || !got.Proven || p.Sent != 300 || p.Received == 0 ||
		p.Received+p.Lost != 300 || p.P50 <= 0 || len(got.Drops) == 0 {
		t.Errorf("%s", out)
	}

	if err := echo.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, log); err != nil {
		t.Error(err)
	}
	if err := echo.Wait(); err != nil {
		t.Errorf("echo: %v", err)
	}
	var server struct {
		Kind  string
		Stats struct {
			RxPackets uint64 `json:"rx_packets"`
			TxPackets uint64 `json:"tx_packets"`
		}
	}
	if err := json.Unmarshal(echoed.Bytes(), &server); err != nil {
		t.Fatalf("%v: %s", err, &echoed)
	}
	if server.Kind != kind || server.Stats.RxPackets < got.Ping.Received || server.Stats.TxPackets < got.Ping.Received {
		t.Errorf("the server says %s, the client %s", &echoed, out)
	}
}
