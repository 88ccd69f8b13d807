package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/dispatcher/daemon"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/shm"
)

// onNode gives a command the flag that says which node.
func onNode(cmd *cobra.Command) *cobra.Command {
	dir, set := os.LookupEnv("MAINZ_DIR")
	if !set {
		dir = mainz.DefaultDir
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if dirOf(cmd) != "" {
			return nil
		}
		return &problem{kind: usage, err: errors.New("the name of the directory is empty"), hint: "name the node's directory in --dir or MAINZ_DIR, or leave both out"}
	}
	cmd.Flags().String("dir", dir, "`directory` of the node; default $MAINZ_DIR")
	return cmd
}

func dirOf(cmd *cobra.Command) string {
	dir, err := cmd.Flags().GetString("dir")
	if err != nil {
		panic(err) // onNode has given the command this flag
	}
	return dir
}

// look opens a store for looking: no slot, no lock, and no dispatcher needed.
func look(cmd *cobra.Command) (*ltdb.Store, error) {
	return ltdb.Open(cmd.Context(), dirOf(cmd), ltdb.Options{ReadOnly: true})
}

// show prints a result: as JSON, or as f writes it.
func show(cmd *cobra.Command, v any, f func(w io.Writer)) error {
	if jsonOutput(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	f(w)
	return w.Flush()
}

type nodeStatus struct {
	Dir       string `json:"dir"`
	Cluster   string `json:"cluster"`
	PNN       uint32 `json:"pnn"`
	Running   bool   `json:"running"`
	PID       uint32 `json:"pid,omitempty"`
	Started   string `json:"started,omitempty"`
	Gate      string `json:"gate"`
	Epoch     uint64 `json:"epoch"`
	Life      uint64 `json:"life"`
	Size      uint64 `json:"size_bytes"`
	Clients   int    `json:"clients"`
	Slots     uint32 `json:"slots"`
	Databases int    `json:"databases"`
	Healthy   bool   `json:"healthy"`
}

func statusCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "status",
		Short: "Say how a node is",
		Long: `Reads the segment and looks whether mainzd answers. It ends with 7 if the
node is not healthy: mainzd does not run, or the gate is closed.`,
		Example: `  mainz status
  mainz status --dir /dev/shm/mainz/prod/0/v1 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			seg := s.Segment()
			node, _, err := call.NodeOf(seg)
			if err != nil {
				return err
			}
			dbs, err := s.Databases()
			if err != nil {
				return err
			}
			h, g := seg.Header(), seg.Gate()
			st := nodeStatus{Dir: dirOf(cmd), Cluster: h.Cluster(), PNN: h.PNN, Epoch: g.Epoch.Load(), Life: g.Life.Load(), Size: h.Size,
				Clients: len(s.Clients()), Slots: seg.Slots(), Databases: len(dbs)}
			state, _ := g.State()
			st.Gate = map[uint32]string{shm.GateDead: "dead", shm.GateFrozen: "frozen", shm.GateOpen: "open"}[state]
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
			defer cancel()
			if conn, err := attach.Dial(ctx, dirOf(cmd)); err == nil {
				st.Running = true
				st.PID, st.Started = node.PID.Load(), time.Unix(0, int64(node.Started.Load())).UTC().Format(time.RFC3339)
				_ = conn.Close()
			}
			st.Healthy = st.Running && state == shm.GateOpen
			err = show(cmd, st, func(w io.Writer) {
				fmt.Fprintf(w, "node\t%s\ncluster\t%s, node %d\n", st.Dir, st.Cluster, st.PNN)
				if st.Running {
					fmt.Fprintf(w, "mainzd\tprocess %d, since %s\n", st.PID, st.Started)
				} else {
					fmt.Fprintf(w, "mainzd\tnot running\n")
				}
				fmt.Fprintf(w, "gate\t%s, epoch %d\nsegment\t%d MiB\nclients\t%d of %d\ndatabases\t%d\n", st.Gate, st.Epoch, st.Size>>20, st.Clients, st.Slots, st.Databases)
			})
			if err == nil && !st.Healthy {
				err = &problem{kind: degraded, err: errors.New("the node is not healthy"), hint: "start mainzd for " + st.Dir}
			}
			return err
		},
	})
}

type clientStat struct {
	Slot  uint32 `json:"slot"`
	Name  string `json:"name"`
	PID   uint32 `json:"pid"`
	Locks int    `json:"locks"`
	ltdb.Stats
}

func statCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "stat",
		Short: "Show what the clients of a node have done",
		Long:  `Reads the clients' counters in shared memory. It needs no mainzd.`,
		Example: `  mainz stat
  mainz stat -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			all := []clientStat{}
			for _, c := range s.Clients() {
				all = append(all, clientStat{c.Slot, c.Name, c.PID, c.Locks, c.Stats})
			}
			return show(cmd, map[string]any{"clients": all}, func(w io.Writer) {
				fmt.Fprintln(w, "SLOT\tNAME\tPID\tFETCHES\tSTORES\tDELETES\tLOCKS\tWAITS\tHELD\t")
				for _, c := range all {
					fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", c.Slot, c.Name, c.PID, c.Fetches, c.Stores, c.Deletes, c.Stats.Locks, c.Waits, c.Locks)
				}
			})
		},
	})
}

type lockInfo struct {
	DB      string `json:"db"`
	Key     []byte `json:"key"` // base64, as JSON has it
	Slot    uint32 `json:"slot"`
	Name    string `json:"name"`
	PID     uint32 `json:"pid"`
	Waiters bool   `json:"waiters"`
}

func locksCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "locks",
		Short: "List the records that are locked, and by whom",
		Example: `  mainz locks
  mainz locks -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			found, err := s.Locked(cmd.Context())
			if err != nil {
				return err
			}
			all := []lockInfo{}
			for _, l := range found {
				i := lockInfo{DB: l.DB.Name(), Key: l.Key, Slot: l.Slot, Waiters: l.Waiters || l.Asked}
				if slot := s.Segment().Slot(l.Slot); slot != nil {
					i.Name, i.PID = s.Segment().SlotName(l.Slot), slot.PID.Load()
				}
				all = append(all, i)
			}
			return show(cmd, map[string]any{"locks": all}, func(w io.Writer) {
				fmt.Fprintln(w, "DATABASE\tKEY\tSLOT\tNAME\tPID\tWAITED FOR\t")
				for _, l := range all {
					fmt.Fprintf(w, "%s\t%q\t%d\t%s\t%d\t%v\t\n", l.DB, l.Key, l.Slot, l.Name, l.PID, l.Waiters)
				}
			})
		},
	})
}

func checkCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "check",
		Short: "Walk a store and look whether it is sound",
		Long: `Walks every invariant. It takes no lock, so it speaks the truth only while
nobody changes the store. It ends with 7 if something is broken.`,
		Example: `  mainz check
  mainz check -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := s.Check(cmd.Context())
			if err != nil {
				return err
			}
			err = show(cmd, r, func(w io.Writer) {
				fmt.Fprintf(w, "records\t%d\nlocked\t%d\npieces\t%d\nblocks\t%d, free %d\nspans\t%d of %d\nbroken\t%d\n", r.Records, r.Locked, r.Pieces, r.Blocks, r.Free+r.AtHand, r.Spans, r.SpansAll, r.Broken)
				for _, e := range r.Errors {
					fmt.Fprintf(w, "\t%s\n", e)
				}
			})
			if err == nil && !r.OK() {
				err = &problem{kind: degraded, err: fmt.Errorf("%d invariants are broken", r.Broken), hint: "if nobody was changing the store: dump it, and start mainzd with --wipe"}
			}
			return err
		},
	})
}

type databaseSize struct {
	Name    string `json:"name"`
	Mode    string `json:"mode"`
	Records int    `json:"records"`
	Bytes   uint64 `json:"bytes"`
}

func sizeCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "size",
		Short: "Show how much the databases of a node hold",
		Example: `  mainz size
  mainz size -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			dbs, err := s.Databases()
			if err != nil {
				return err
			}
			all := []databaseSize{}
			for _, db := range dbs {
				u, err := db.Usage(cmd.Context())
				if err != nil {
					return err
				}
				all = append(all, databaseSize{db.Name(), db.Mode().String(), u.Records, u.Bytes})
			}
			size := s.Segment().Header().Size
			return show(cmd, map[string]any{"databases": all, "segment_bytes": size}, func(w io.Writer) {
				fmt.Fprintln(w, "DATABASE\tMODE\tRECORDS\tBYTES\t")
				for _, d := range all {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d\t\n", d.Name, d.Mode, d.Records, d.Bytes)
				}
				fmt.Fprintf(w, "segment\t\t\t%d\t\n", size)
			})
		},
	})
}

func configCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config [MAINZD FLAG]...",
		Short: "Show what mainzd would go by, and where each value comes from",
		Long: `Shows each setting, its value, and where that comes from. Where the segment that
is there was made with another value, that is shown as well: it is in force
until mainzd is started with --wipe, which empties the node.`,
		Example: `  mainz config
  mainz config -o json -- --config /etc/mainz/prod.toml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := daemon.Settings(args)
			if err != nil {
				return &problem{kind: usage, err: err, hint: "see mainzd --help"}
			}
			return show(cmd, map[string]any{"settings": all}, func(w io.Writer) {
				for _, s := range all {
					force := ""
					if s.InForce != "" {
						force = "in force: " + s.InForce
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.Value, s.Source, force)
				}
			})
		},
	}
}
