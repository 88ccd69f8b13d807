package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/bench/drive"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/xdp"
)

// netPort is where both ends listen if nothing else is said.
const netPort = 4379

// netFlags are what both ends of a connection have.
type netFlags struct {
	listen  string
	mode    string
	idle    string
	cpu     int
	keep    bool
	verbose bool
}

// netCommand drives a transport by hand.
func netCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Try the transports between nodes by hand",
		Long: `Sends datagrams from node to node as the daemon would: through the kernel's
UDP, or round it with AF_XDP. Each side must name the other one, for datagrams
of strangers are dropped. docs/transport.md tells more.`,
		Example: `  node2$ mainz net echo --listen 10.0.0.2 10.0.0.1
  node1$ mainz net ping --listen 10.0.0.1 10.0.0.2
  node1$ mainz net ping --listen 10.0.0.1 --transport udp --window 64 --seconds 5 -o json 10.0.0.2`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(netEchoCommand(), netPingCommand())
	return cmd
}

func (f *netFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.listen, "listen", "", "own address, with or without a port")
	s.StringVar(&f.mode, "transport", "auto", "auto, udp, xdp, xdp-copy or xdp-generic")
	s.StringVar(&f.idle, "idle", "adaptive", "with nothing to do: adaptive, busy (a whole CPU) or sleep")
	s.IntVar(&f.cpu, "cpu", -1, "CPU to pin the thread to")
	s.BoolVar(&f.keep, "keep-privileges", false, "go on with the capabilities that only opening needs")
	s.BoolVarP(&f.verbose, "verbose", "v", false, "log the choice of the path on standard error")
}

// forced tells whether one AF_XDP path was asked for and no other.
func (f *netFlags) forced() bool {
	m, err := xdp.ParseMode(f.mode)
	return err == nil && m != xdp.Auto && m != xdp.UDP
}

// open opens the transport with these peers, and drops what only that needed.
func (f *netFlags) open(cmd *cobra.Command, peers []string) (transport.Transport, drive.Options, error) {
	o := drive.Options{CPU: f.cpu}
	var err error
	if o.Idle, err = drive.ParseIdle(f.idle); err != nil {
		return nil, o, &problem{kind: usage, err: err}
	}
	mode, err := xdp.ParseMode(f.mode)
	if err != nil {
		return nil, o, &problem{kind: usage, err: err}
	}
	if f.listen == "" {
		return nil, o, &problem{kind: usage, err: fmt.Errorf("no --listen"),
			hint: "name this node's address, by which the peers know it: --listen 10.0.0.1"}
	}
	listen, err := addrPort(f.listen)
	if err != nil {
		return nil, o, err
	}
	opts := xdp.Options{Listen: listen, Mode: mode}
	if f.verbose {
		opts.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	}
	t, err := xdp.Open(opts)
	if err != nil {
		return nil, o, netProblem(err)
	}
	var list []transport.Peer
	for i, s := range peers {
		a, err := addrPort(s)
		if err != nil {
			t.Close()
			return nil, o, err
		}
		list = append(list, transport.Peer{ID: transport.PeerID(i), Addr: a})
	}
	if err := t.SetPeers(list); err != nil {
		t.Close()
		return nil, o, netProblem(err)
	}
	if !f.keep {
		switch err := xdp.DropPrivileges(); {
		case errors.Is(err, transport.ErrNotSupported) && mode == xdp.UDP:
			// It needed none. Who built it with cgo keeps what there was.
		case errors.Is(err, transport.ErrNotSupported):
			t.Close()
			return nil, o, &problem{kind: failure, err: err, hint: "or keep them here: --keep-privileges"}
		case err != nil:
			t.Close()
			return nil, o, err
		}
	}
	return t, o, nil
}

// netProblem says what to do about an error of a transport.
func netProblem(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &problem{kind: permission, err: err,
			hint: "AF_XDP wants root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: see mainz doctor net"}
	case errors.Is(err, syscall.EADDRINUSE):
		return &problem{kind: busy, err: err,
			hint: "another program has the port: end it, or give another one, --listen ADDRESS:PORT"}
	case errors.Is(err, transport.ErrPeer):
		return &problem{kind: usage, err: err,
			hint: "give each peer once, as an address of the IP version that --listen has"}
	}
	return err
}

func addrPort(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, netPort), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, &problem{kind: usage, err: fmt.Errorf("%q is no address", s),
			hint: "give an IP address, with or without a port: 10.0.0.1 or 10.0.0.1:" + strconv.Itoa(netPort)}
	}
	return a, nil
}

// netResult is what either command prints.
type netResult struct {
	Path     string            `json:"path"`
	Kind     string            `json:"kind"`
	Proven   bool              `json:"proven"`
	MTU      int               `json:"mtu,omitempty"`
	Ping     *drive.Pinged     `json:"ping,omitempty"`
	Stats    transport.Stats   `json:"stats"`
	Drops    map[string]uint64 `json:"drops"`
	Unechoed uint64            `json:"unechoed,omitempty"`
}

func newNetResult(t transport.Transport) netResult {
	p, s := t.Path(), t.Stats()
	r := netResult{Path: p.String(), Kind: p.Kind.String(), Proven: p.Proven, Stats: s, Drops: map[string]uint64{}}
	for d, n := range s.Drops {
		r.Drops[transport.Drop(d).String()] = n
	}
	return r
}

func (r *netResult) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := newEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintln(w, "path:", r.Path)
	if p := r.Ping; p != nil {
		fmt.Fprintf(w, "%d bytes, %d under way: %d sent, %d received, %d lost, %d late in %.2f s, %.0f/s\n",
			p.Size, p.Window, p.Sent, p.Received, p.Lost, p.Late, p.Seconds, p.PerSec)
		fmt.Fprintf(w, "round trip µs: min %.2f, p50 %.2f, p90 %.2f, p99 %.2f, p99.9 %.2f, max %.1f\n",
			p.Min/1e3, p.P50/1e3, p.P90/1e3, p.P99/1e3, p.P999/1e3, p.Max/1e3)
	}
	s := r.Stats
	fmt.Fprintf(w, "received %d (%d by the kernel), sent %d (%d by the kernel)", s.RxPackets, s.RxKernel, s.TxPackets,
		s.TxKernel)
	if r.Unechoed > 0 {
		fmt.Fprintf(w, ", not echoed %d", r.Unechoed)
	}
	for d, n := range s.Drops {
		if n > 0 {
			fmt.Fprintf(w, ", %s %d", transport.Drop(d), n)
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

func netEchoCommand() *cobra.Command {
	var f netFlags
	cmd := &cobra.Command{
		Use:   "echo --listen ADDRESS PEER...",
		Short: "Send back what the peers send, until interrupted",
		Example: `  mainz net echo --listen 10.0.0.2 10.0.0.1
  mainz net echo --listen 10.0.0.2 --transport xdp-generic --idle busy --cpu 1 10.0.0.1`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, o, err := f.open(cmd, args)
			if err != nil {
				return err
			}
			defer t.Close()
			fmt.Fprintln(cmd.ErrOrStderr(), "echo:", t.Path())
			n, err := drive.Echo(cmd.Context(), t, o)
			if err != nil {
				return err
			}
			r := newNetResult(t)
			r.Unechoed = n
			return r.print(cmd.OutOrStdout(), jsonOutput(cmd))
		},
	}
	f.add(cmd)
	return cmd
}

func netPingCommand() *cobra.Command {
	var f netFlags
	var p drive.PingOptions
	var seconds float64
	cmd := &cobra.Command{
		Use:   "ping --listen ADDRESS PEER",
		Short: "Measure round trips, rate and loss to an echo server",
		Example: `  mainz net ping --listen 10.0.0.1 10.0.0.2
  mainz net ping --listen 10.0.0.1 --size 1024 --window 64 --seconds 5 -o json 10.0.0.2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, o, err := f.open(cmd, args)
			if err != nil {
				return err
			}
			defer t.Close()
			p.Options, p.Duration = o, time.Duration(seconds*float64(time.Second))
			if p.Count > 0 && !cmd.Flags().Changed("seconds") {
				p.Duration = 0
			}
			got, err := drive.Ping(cmd.Context(), t, p)
			switch {
			case errors.Is(err, drive.ErrOptions):
				return &problem{kind: usage, err: err}
			case errors.Is(err, drive.ErrNoAnswer):
				return &problem{kind: timeout, err: fmt.Errorf("%s: %w (path: %v)", args[0], err, t.Path()),
					hint: "does mainz net echo run there, and does it name this node's address as a peer?"}
			case err != nil:
				return fmt.Errorf("%w (path: %v)", err, t.Path())
			}
			r := newNetResult(t)
			r.Ping, r.MTU = got, t.MTU(p.To)
			if err := r.print(cmd.OutOrStdout(), jsonOutput(cmd)); err != nil {
				return err
			}
			if got.Received == 0 && cmd.Context().Err() != context.Canceled {
				return &problem{kind: degraded, err: fmt.Errorf("none of %d datagrams came back", got.Sent)}
			}
			if f.forced() && !r.Proven {
				return &problem{kind: degraded,
					err:  fmt.Errorf("%s did not answer over %s, and was reached through the kernel", args[0], r.Kind),
					hint: "its route may lead by another interface, or its hardware address is unknown: ip route get, ip neigh; and mainz doctor net at both ends"}
			}
			return nil
		},
	}
	f.add(cmd)
	s := cmd.Flags()
	s.IntVar(&p.Size, "size", 64, "bytes of a datagram, 16 up to the path's MTU")
	s.IntVar(&p.Count, "count", 0, "datagrams to send (default: as many as --seconds allows)")
	s.Float64Var(&seconds, "seconds", 2, "how long to send")
	s.IntVar(&p.Window, "window", 1, "datagrams under way; 1 measures round trips, more the rate")
	return cmd
}
