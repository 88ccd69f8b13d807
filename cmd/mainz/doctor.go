package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/internal/table"
	"github.com/mainzdb/mainz/transport/xdp"
)

// doctorCommand says what is wrong with the machine, and what to change.
func doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Say what this machine can do, and what to change",
		Example: "  mainz doctor net 10.0.0.1",
		Args:    cobra.NoArgs,
	}
	cmd.AddCommand(doctorNetCommand())
	return cmd
}

func doctorNetCommand() *cobra.Command {
	var try bool
	cmd := &cobra.Command{
		Use:   "net ADDRESS",
		Short: "Say which transport an interface allows, and what to change",
		Long: `Looks at the interface that has the address: driver, queues, rings, MTU,
capabilities, locked memory and the kernel's features, and says which transports
auto would try in which order. Nothing is changed, unless --try is given: that
opens the transport for a moment on a free port, which makes some drivers lose
the link for seconds.`,
		Example: `  mainz doctor net 10.0.0.1
  mainz doctor net --try -o json 10.0.0.1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				return &problem{kind: usage, err: fmt.Errorf("%q is no address", args[0]),
					hint: "give an address of this node: mainz doctor net 10.0.0.1"}
			}
			e, err := xdp.Examine(addr)
			if err != nil {
				return err
			}
			if try {
				t, err := xdp.Open(xdp.Options{Listen: netip.AddrPortFrom(addr, 0)})
				if err != nil {
					return err
				}
				e.Chosen = t.Path().String()
				if err := t.Close(); err != nil {
					return err
				}
			}
			if jsonOutput(cmd) {
				enc := newEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(e)
			}
			return printExamination(cmd.OutOrStdout(), e)
		},
	}
	cmd.Flags().BoolVar(&try, "try", false, "open the transport for a moment and say what auto took")
	return cmd
}

func printExamination(w io.Writer, e *xdp.Examination) error {
	t := table.New(w)
	row := t.Row
	state := "up"
	if !e.Up {
		state = "down"
	}
	row("interface", "%s (%s), %s", e.Interface, e.Driver, state)
	row("MTU", "%d: frames of %d bytes, several a packet: %v", e.MTU, e.Frame, e.MultiBuffer)
	row("queues", "%d to receive, %d to send", e.RxQueues, e.TxQueues)
	if e.RxRingMax > 0 {
		row("rings", "%d of at most %d to receive, %d of %d to send", e.RxRing, e.RxRingMax, e.TxRing, e.TxRingMax)
	} else {
		row("rings", "the driver does not tell")
	}
	if e.Program != 0 {
		row("program", "%d is attached", e.Program)
	} else {
		row("program", "none attached")
	}
	switch {
	case e.Features == nil:
		row("XDP in the driver", "the kernel does not tell")
	case len(e.Features) == 0:
		row("XDP in the driver", "none")
	default:
		row("XDP in the driver", "%s", strings.Join(e.Features, ", "))
	}
	row("kernel", "%s; AF_XDP: %s; BPF: %s", e.Kernel, e.AFXDP, e.BPF)
	missing := "none missing"
	if len(e.Capabilities) > 0 {
		missing = "missing: " + strings.Join(e.Capabilities, ", ")
	}
	row("capabilities", "%s", missing)
	row("locked memory", "%d bytes allowed, %d needed", e.MemlockBytes, e.NeedBytes)
	row("auto tries", "%s", strings.Join(e.Order, ", "))
	row("it should take", "%s", e.Expected)
	if e.Chosen != "" {
		row("auto took", "%s", e.Chosen)
	}
	for _, a := range e.Advice {
		row("advice", "%s", a)
	}
	return t.Flush()
}
