package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/bench"
)

// benchCommand measures: `mainz bench local`, ring and net, and the worker
// processes that they start.
func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure store, ring and transports beside their peers",
		Example: `  mainz bench local --quick
  mainz bench ring --quick
  mainz bench net --quick
  mainz bench local -o json >result.json`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(benchLocalCommand(), benchWorkerCommand(), benchNetCommand(), benchNetWorkerCommand(),
		benchRingCommand(), benchRingWorkerCommand())
	return cmd
}

func benchLocalCommand() *cobra.Command {
	var opts bench.Options
	cmd := &cobra.Command{
		Use:   "local",
		Short: "Measure record operations between processes of this machine",
		Long: `Measures fetch, batch fetch, fetch-locked + store-unlock, store and the append
pattern with one and two processes, beside libtdb with robust mutexes and a
table of sequence locks (the floor of the hardware), in alternating slices.
docs/performance.md tells how to read the result.

Wait until the machine is quiet, and build the peers first: make bench-peers`,
		Example: `  mainz bench local --quick
  mainz bench local -o json >result.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !jsonOutput(cmd) {
				opts.Progress = cmd.ErrOrStderr()
			}
			report, err := bench.Local(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if jsonOutput(cmd) {
				return report.WriteJSON(cmd.OutOrStdout())
			}
			return report.WriteText(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.Quick, "quick", false, "64-byte values and the most telling operations only, within 40 s")
	f.StringVar(&opts.Dir, "dir", "/dev/shm", "ramdisk to make the stores on")
	f.BoolVar(&opts.NoPeers, "no-peers", false, "measure mainz alone")
	f.StringSliceVar(&opts.Peers, "peers", nil, "peers (default tdb-mutex,seqlock; also tdb-parse, tdb-fcntl)")
	f.StringVar(&opts.Driver, "driver", "", "program with the peers (default mainz-peers beside this one, then bin/mainz-peers)")
	return cmd
}

// benchWorkerCommand is a process of ours in a benchmark. People don't start it.
func benchWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "worker",
		Short:   "Be one measured process, led by lines on the standard input",
		Example: `  echo 'pin 0' | mainz bench worker`,
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.Worker(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func benchNetCommand() *cobra.Command {
	var opts bench.NetOptions
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Measure the transports beside kernel UDP from C and Go",
		Long: `Measures round trips and rates of datagrams of 64 and 1,024 bytes over one
veth pair between two network namespaces, which go with the run: our transports,
kernel UDP as C drives it in a busy loop, and Go's net.UDPConn, in alternating
slices. Needs root, two CPUs, and for the C side a compiler.`,
		Example: `  mainz bench net --quick
  mainz bench net -o json >net.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var line *progressLine
			if !jsonOutput(cmd) {
				line = newProgressLine(cmd.ErrOrStderr())
				opts.Progress = func(text string) { line.print(text, false) }
			}
			if opts.Rounds < 0 || opts.Slice < 0 || opts.Window < 2 {
				return &problem{kind: usage, err: fmt.Errorf("--rounds %d, --slice %v, --window %d: none may be below 0, and the window must be 2 or more", opts.Rounds, opts.Slice, opts.Window)}
			}
			report, err := bench.Net(cmd.Context(), opts)
			line.end()
			if errors.Is(err, fs.ErrPermission) {
				return &problem{kind: permission, err: err, hint: "sudo mainz bench net"}
			}
			if err != nil {
				return err
			}
			if jsonOutput(cmd) {
				return report.WriteJSON(cmd.OutOrStdout())
			}
			return report.WriteText(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.Quick, "quick", false, "shorter slices, and the rate for 64 bytes only: under a minute")
	f.IntVar(&opts.Rounds, "rounds", 0, "rounds of all contestants, twice as many for the rate (default 9)")
	f.DurationVar(&opts.Slice, "slice", 0, "length of a slice (default 300ms, quick 100ms)")
	f.IntVar(&opts.Window, "window", 64, "datagrams under way for the rate")
	return cmd
}

// benchNetWorkerCommand is one end of a connection in a benchmark. People don't
// start it.
func benchNetWorkerCommand() *cobra.Command {
	var o bench.NetWorkerOptions
	cmd := &cobra.Command{
		Use:     "net-worker",
		Short:   "One end of a connection that bench net measures",
		Example: "  mainz bench net",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.NetWorker(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Peer, "peer", "", "what to run")
	f.BoolVar(&o.Server, "server", false, "be the server")
	f.StringVar(&o.Listen, "listen", "", "own address and port")
	f.StringVar(&o.To, "to", "", "the other end's")
	f.IntVar(&o.Size, "size", 64, "bytes of a datagram")
	f.IntVar(&o.Window, "window", 1, "datagrams under way")
	f.IntVar(&o.CPU, "cpu", -1, "CPU to pin to")
	f.DurationVar(&o.Slice, "slice", time.Second, "how long to measure")
	return cmd
}

func benchRingCommand() *cobra.Command {
	var opts bench.RingOptions
	cmd := &cobra.Command{
		Use:   "ring",
		Short: "Measure rings beside the floor, a datagram socket and a pipe",
		Long: `Measures the round trip of a message without work between two processes, each
pinned to a CPU: over our rings (both ends busy, adaptive and sleeping), of calls of a client to
its node's dispatcher (nothing, a fetch, and lock-read-store), and as C
drives them in a busy loop a ring of the least instructions (the floor of the
hardware), a unix datagram socket and a pipe, in alternating slices. Needs two
CPUs, and for the C side a compiler.`,
		Example: `  mainz bench ring --quick
  mainz bench ring -o json >ring.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var line *progressLine
			if !jsonOutput(cmd) {
				line = newProgressLine(cmd.ErrOrStderr())
				opts.Progress = func(text string) { line.print(text, false) }
			}
			report, err := bench.Ring(cmd.Context(), opts)
			line.end()
			if err != nil {
				return err
			}
			if jsonOutput(cmd) {
				return report.WriteJSON(cmd.OutOrStdout())
			}
			return report.WriteText(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.Quick, "quick", false, "five short rounds")
	f.StringVar(&opts.Dir, "dir", "/dev/shm", "ramdisk to make the rings on")
	f.IntVar(&opts.Rounds, "rounds", 0, "rounds of all contestants (default 15, quick 5)")
	f.DurationVar(&opts.Slice, "slice", 0, "length of a slice (default 200ms, quick 100ms)")
	return cmd
}

// benchRingWorkerCommand is one end of a ring in a benchmark. People don't
// start it.
func benchRingWorkerCommand() *cobra.Command {
	var o bench.RingWorkerOptions
	cmd := &cobra.Command{
		Use:     "ring-worker",
		Short:   "One end of a ring that bench ring measures",
		Example: "  mainz bench ring",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.RingWorker(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Idle, "idle", "adaptive", "busy, adaptive or sleep")
	f.StringVar(&o.Call, "call", "", "what to ask of a dispatcher: nop, fetch or rmw")
	f.BoolVar(&o.Server, "server", false, "be the server")
	f.StringVar(&o.Dir, "dir", "", "directory of the run")
	f.IntVar(&o.CPU, "cpu", 0, "CPU to pin to")
	f.DurationVar(&o.Slice, "slice", time.Second, "how long to measure")
	return cmd
}
