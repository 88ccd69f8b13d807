package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/daemon"
	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/internal/table"
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
		return &problem{kind: usage, err: errors.New("the name of the directory is empty"),
			hint: "name the node's directory in --dir or MAINZ_DIR, or leave both out"}
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
		return newEncoder(cmd.OutOrStdout()).Encode(v)
	}
	w := table.New(cmd.OutOrStdout())
	f(w)
	return w.Flush()
}

type nodeStatus struct {
	Dir       string   `json:"dir"`
	State     string   `json:"state"`    // the first of problems; "healthy" if there is none
	Problems  []string `json:"problems"` // by their names, the worst first
	Healthy   bool     `json:"healthy"`
	Cluster   string   `json:"cluster"`
	PNN       uint32   `json:"pnn"`
	Running   bool     `json:"running"`   // somebody listens
	Answers   bool     `json:"answers"`   // and has answered
	Answer    float64  `json:"answer_ms"` // how long that took
	PID       uint32   `json:"pid,omitempty"`
	Started   string   `json:"started,omitempty"`
	Gate      string   `json:"gate"`
	Epoch     uint64   `json:"epoch"`
	Life      uint64   `json:"life"`
	Size      uint64   `json:"size_bytes"`
	Spans     int      `json:"spans"`
	FreeSpans int      `json:"free_spans"`
	SpanBytes uint64   `json:"span_bytes"`
	Clients   int      `json:"clients"` // the living
	Dead      int      `json:"dead_clients"`
	Slots     uint32   `json:"slots"`
	Databases int      `json:"databases"`
	Damage    []string `json:"damage,omitempty"` // noted since the segment was made
	Unproven  []undead `json:"unproven_deaths,omitempty"`
}

// undead is a client that is marked dead, and whose process may run.
type undead struct {
	Slot   uint32 `json:"slot"`
	Name   string `json:"name"`
	PID    uint32 `json:"pid"`
	Since  string `json:"since"`
	LockAt int64  `json:"lock_at"` // in the segment's file
}

// unproven are those that mainzd has named.
func unproven(seg *shm.Segment, node *call.Node) (all []undead) {
	for i := range node.Unproven {
		v := node.Unproven[i].Load()
		slot := uint32(v >> 40)
		if slot == 0 || slot > seg.Slots() || !seg.Dead(slot) {
			continue
		}
		all = append(all, undead{slot, seg.SlotName(slot), seg.Slot(slot).PID.Load(),
			time.Unix(int64(v&(1<<40-1)), 0).UTC().Format(time.RFC3339), seg.LockPlace(slot)})
	}
	return all
}

// trouble is one thing that can be wrong with a node.
type trouble struct {
	name string
	kind *kind
	text string
	hint string
}

func statusCommand() *cobra.Command {
	var limit time.Duration
	cmd := onNode(&cobra.Command{
		Use:   "status",
		Short: "Say how a node is",
		Long: `Asks mainzd, whose loop has to answer within --timeout, and reads the segment.
It takes no slot. The exit code is that of the worst that it finds:

  0   healthy
  3   not_running    no segment, or nobody listens
  6   not_answering  mainzd does not answer in time: it is stopped, or hangs
  7   damaged        the segment holds what no correct program writes
  7   closed         the gate is closed: nothing is served
  7   unproven_death a client is marked dead, and its process may run: what it
                     holds stays locked
  10  full           no memory is left for records of some size
  11  no_slots       as many clients are attached as there are slots

With -o json "state" has that name, "problems" has all of them, and the object is
printed even if the exit code is not 0, but for a segment that can't be read.`,
		Example: `  mainz status
  mainz status --timeout 200ms -o json
  mainz status --dir /dev/shm/mainz/prod/0/v1 -o json`,
		Args: cobra.NoArgs,
	})
	cmd.Flags().DurationVar(&limit, "timeout", time.Second, "`time` that mainzd may take for an answer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if limit <= 0 {
			return &problem{kind: usage, err: fmt.Errorf("--timeout %v: it must be more than 0", limit)}
		}
		st, all, err := statusOf(cmd.Context(), cmd, limit)
		if err != nil {
			return err
		}
		err = show(cmd, st, func(w io.Writer) {
			fmt.Fprintf(w, "node\t%s\nstate\t%s\ncluster\t%s, node %d\n", st.Dir,
				strings.Join(orHealthy(st.Problems), ", "), visible(st.Cluster), st.PNN)
			switch {
			case st.Answers:
				fmt.Fprintf(w, "mainzd\tprocess %d, since %s, answered in %.1f ms\n", st.PID, st.Started, st.Answer)
			case st.Running:
				fmt.Fprintf(w, "mainzd\tprocess %d, since %s, does not answer\n", st.PID, st.Started)
			default:
				fmt.Fprintf(w, "mainzd\tnot running\n")
			}
			fmt.Fprintf(w, "gate\t%s, epoch %d\nsegment\t%d MiB, %d of %d spans of %d KiB are free\n", st.Gate,
				st.Epoch, st.Size>>20, st.FreeSpans, st.Spans, st.SpanBytes>>10)
			fmt.Fprintf(w, "clients\t%d of %d", st.Clients, st.Slots)
			if st.Dead > 0 {
				fmt.Fprintf(w, ", and %d dead", st.Dead)
			}
			fmt.Fprintf(w, "\ndatabases\t%d\n", st.Databases)
			for _, text := range st.Damage {
				fmt.Fprintf(w, "damage\t%s\n", visible(text))
			}
			for _, u := range st.Unproven {
				fmt.Fprintf(w, "not proven dead\tsince %s: %s\n", u.Since,
					dispatcher.Unproven(u.Slot, u.Name, u.PID, u.LockAt))
			}
		})
		if err == nil && len(all) > 0 {
			err = &problem{kind: all[0].kind, err: errors.New(all[0].text), hint: all[0].hint}
		}
		return err
	}
	return cmd
}

func orHealthy(problems []string) []string {
	if len(problems) == 0 {
		return []string{"healthy"}
	}
	return problems
}

// statusOf looks at a node; the worst trouble comes first.
func statusOf(ctx context.Context, cmd *cobra.Command, limit time.Duration) (*nodeStatus, []trouble, error) {
	s, err := look(cmd)
	if err != nil {
		return nil, nil, err
	}
	defer s.Close()
	seg, dir := s.Segment(), dirOf(cmd)
	node, _, err := call.NodeOf(seg)
	if err != nil {
		return nil, nil, err
	}
	var all []trouble
	h, g, room := seg.Header(), seg.Gate(), s.Room()
	st := &nodeStatus{Dir: dir, Cluster: h.Cluster(), PNN: h.PNN, Epoch: g.Epoch.Load(), Life: g.Life.Load(),
		Size: h.Size, Slots: seg.Slots(),
		Spans: room.Spans, FreeSpans: room.FreeSpans, SpanBytes: room.SpanBytes, Problems: []string{}}
	for _, c := range s.Clients() {
		if c.Dead {
			st.Dead++
		} else {
			st.Clients++
		}
	}
	dbs, err := s.Databases()
	if err != nil {
		all = append(all, trouble{"damaged", degraded, err.Error(),
			"see mainz check; then dump what is sound, and start mainzd with --wipe"})
	}
	if st.Damage = s.Damage(); err == nil && len(st.Damage) > 0 {
		all = append(all, trouble{"damaged", degraded,
			"somebody has overwritten parts of the segment; what is whole is served",
			"find out which member of the group did it; dump what is sound, and start mainzd with --wipe"})
	}
	st.Databases = len(dbs)
	// The dispatcher's loop greets whoever comes: so it turns, and can let clients in.
	start := time.Now()
	asking, cancel := context.WithTimeout(ctx, limit)
	err = greet(asking, dir)
	cancel()
	st.Answer = float64(time.Since(start).Microseconds()) / 1e3
	st.Running = !errors.Is(err, attach.ErrNotRunning)
	st.Answers = err == nil
	if st.Running {
		st.PID, st.Started = node.PID.Load(), time.Unix(0, int64(node.Started.Load())).UTC().Format(time.RFC3339)
	}
	state, _ := g.State() // after the answer: a node that was just starting is open by then
	st.Gate = map[uint32]string{shm.GateDead: "dead", shm.GateFrozen: "frozen", shm.GateOpen: "open"}[state]
	switch {
	case !st.Running:
		all = append(all, trouble{"not_running", notRunning, "mainzd does not run", "start mainzd for " + dir})
	case errors.Is(err, context.DeadlineExceeded):
		all = append(all, trouble{"not_answering", timeout,
			fmt.Sprintf("mainzd, process %d, has not answered in %v", st.PID, limit),
			fmt.Sprintf("it is stopped, hangs, or has no CPU: see /proc/%d/status; killing it loses nothing, and the next one takes over", st.PID)})
	case err != nil:
		k, hint := classify(err)
		all = append(all, trouble{"not_answering", k, err.Error(), hint})
	case state != shm.GateOpen:
		all = append(all, trouble{"closed", degraded, "the gate is closed: nothing is served",
			"it opens when mainzd has recovered the node; if it stays closed, see mainzd's log"})
	}
	if st.Unproven = unproven(seg, node); len(st.Unproven) > 0 {
		u := st.Unproven[0]
		all = append(all, trouble{"unproven_death", degraded,
			fmt.Sprintf("%d clients are marked dead, and nothing proves that their processes are gone: what they hold stays locked", len(st.Unproven)),
			dispatcher.Unproven(u.Slot, u.Name, u.PID, u.LockAt)})
	}
	if room.Full {
		all = append(all, trouble{"full", noSpace,
			fmt.Sprintf("the store is full: no span of %d is free", room.Spans), full.hint})
	}
	if st.Clients >= int(st.Slots) {
		all = append(all, trouble{"no_slots", noSlots, fmt.Sprintf("all %d slots are taken", st.Slots), noSlots.hint})
	}
	for _, t := range all {
		st.Problems = append(st.Problems, t.name)
	}
	st.State = orHealthy(st.Problems)[0]
	st.Healthy = len(all) == 0
	return st, all, nil
}

// greet asks the dispatcher for a welcome.
func greet(ctx context.Context, dir string) error {
	conn, err := attach.Dial(ctx, dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	var answer attach.Message
	return conn.Call(ctx, &attach.Message{Kind: attach.Hello, Version: attach.Version, Name: "mainz status"}, &answer)
}

type clientStat struct {
	Slot    uint32 `json:"slot"`
	Name    string `json:"name"`
	PID     uint32 `json:"pid"`
	Dead    bool   `json:"dead"`
	Held    int    `json:"held"`    // record locks
	Waiting int    `json:"waiting"` // for record locks
	ltdb.Stats
}

func statCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "stat",
		Short: "Show what the clients of a node have done",
		Long: `Reads the counters in shared memory that each client has had since it attached:
by bypass, what went through mainzd is not in them. DEAD is a client that nobody
has cleaned up after yet. It needs no mainzd.`,
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
				all = append(all, clientStat{c.Slot, c.Name, c.PID, c.Dead, c.Locks, c.Waiting, c.Stats})
			}
			return show(cmd, map[string]any{"clients": all}, func(w io.Writer) {
				fmt.Fprintln(w, "SLOT\tNAME\tPID\tSTATE\tFETCHES\tSTORES\tDELETES\tLOCKS\tWAITS\tHELD\tWAITING\t")
				for _, c := range all {
					state := "alive"
					if c.Dead {
						state = "DEAD"
					}
					fmt.Fprintf(w, "%d\t%q\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", c.Slot, c.Name, c.PID, state,
						c.Fetches, c.Stores, c.Deletes, c.Locks, c.Waits, c.Held, c.Waiting)
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
			found, damaged := s.Locked(cmd.Context()) // in what is sound
			all := []lockInfo{}
			for _, l := range found {
				i := lockInfo{DB: l.DB.Name(), Key: l.Key, Slot: l.Slot, Waiters: l.Waiters || l.Asked}
				if slot := s.Segment().Slot(l.Slot); slot != nil {
					i.Name, i.PID = s.Segment().SlotName(l.Slot), slot.PID.Load()
				}
				all = append(all, i)
			}
			return errors.Join(damaged, show(cmd, map[string]any{"locks": all}, func(w io.Writer) {
				fmt.Fprintln(w, "DATABASE\tKEY\tSLOT\tNAME\tPID\tWAITED FOR\t")
				for _, l := range all {
					fmt.Fprintf(w, "%s\t%q\t%d\t%s\t%d\t%v\t\n", visible(l.DB), l.Key, l.Slot, l.Name, l.PID, l.Waiters)
				}
			}))
		},
	})
}

func checkCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "check",
		Short: "Walk a store and look whether it is sound",
		Long: `Walks every invariant of a node, which may be in use meanwhile. It takes no lock
and no slot. What looks wrong it looks at again, some times; it ends with 7 if that
was broken each time, with the same contents and while nobody was at work on it.
"In motion" is what it could not settle: a client in the midst of a call does not
get on, or has died and was not cleaned up after yet. That is no error: the exit
code is 0. Look again, and see mainz status.

With -o json "errors" has what is broken, "broken" their number, "moving" and
"in_motion" what is in motion.`,
		Example: `  mainz check
  mainz check -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := look(cmd)
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := s.CheckLive(cmd.Context())
			if err != nil {
				return err
			}
			err = show(cmd, r, func(w io.Writer) {
				fmt.Fprintf(w, "records\t%d\nlocked\t%d\npieces\t%d\nblocks\t%d, free %d\nspans\t%d of %d\nbroken\t%d\n", r.Records, r.Locked, r.Pieces, r.Blocks, r.Free+r.AtHand, r.Spans, r.SpansAll, r.Broken)
				for _, e := range r.Errors {
					fmt.Fprintf(w, "\t%s\n", visible(e))
				}
				if r.InMotion > 0 {
					fmt.Fprintf(w, "in motion\t%d, no error: look again\n", r.InMotion)
				}
				for _, e := range r.Moving {
					fmt.Fprintf(w, "\t%s\n", visible(e))
				}
			})
			if err == nil && !r.OK() {
				err = &problem{kind: degraded, err: fmt.Errorf("%d invariants are broken", r.Broken),
					hint: "somebody has overwritten parts of the segment, or a program has a bug: keep this output; save the records with mainz dump, then start mainzd with --wipe, which empties the node"}
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
			dbs, damaged := s.Databases() // those that are sound
			all := []databaseSize{}
			for _, db := range dbs {
				u, err := db.Usage(cmd.Context())
				if err != nil {
					return err
				}
				all = append(all, databaseSize{db.Name(), db.Mode().String(), u.Records, u.Bytes})
			}
			size := s.Segment().Header().Size
			return errors.Join(show(cmd, map[string]any{"databases": all, "segment_bytes": size}, func(w io.Writer) {
				fmt.Fprintln(w, "DATABASE\tMODE\tRECORDS\tBYTES\t")
				for _, d := range all {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d\t\n", visible(d.Name), d.Mode, d.Records, d.Bytes)
				}
				fmt.Fprintf(w, "segment\t\t\t%d\t\n", size)
			}), damaged)
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
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, visible(s.Value), s.Source, visible(force))
				}
			})
		},
	}
}
