package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/ltdb"
)

// lookAt opens a database for looking.
func lookAt(cmd *cobra.Command, name string) (*ltdb.DB, func(), error) {
	s, err := look(cmd)
	if err != nil {
		return nil, nil, err
	}
	dbs, err := s.Databases() // with an error those that are sound
	for _, db := range dbs {
		if db.Name() == name {
			return db, func() { s.Close() }, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("database %q: %w", name, ltdb.ErrNoDatabase)
	}
	s.Close()
	return nil, nil, err
}

// changing makes a command that works on a database as a client of the node.
func changing(cmd *cobra.Command, f func(ctx context.Context, cmd *cobra.Command, db *mainz.DB,
	args []string) error) *cobra.Command {
	timeout := cmd.Flags().Duration("timeout", 5*time.Second,
		"`time` to wait for who holds the record; ends with 6 then")
	create := cmd.Flags().Bool("create", false, "make the database if there is none")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), *timeout)
		defer cancel()
		c, err := mainz.Attach(ctx, dirOf(cmd), mainz.WithName("mainz "+cmd.Name()))
		if err != nil {
			return err
		}
		var opts []mainz.OpenOption
		if !*create {
			opts = append(opts, mainz.MustExist())
		}
		mode := mainz.KV
		if cmd.Flags().Changed("hold") {
			mode = mainz.Pieces
		}
		db, err := c.Open(ctx, args[0], mode, opts...)
		if err == nil {
			err = f(ctx, cmd, db, args[1:])
		}
		return errors.Join(err, c.Close())
	}
	return onNode(cmd)
}

func getCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "get DATABASE KEY",
		Short: "Print a record's value",
		Long:  `Prints the bytes as they are; with -o json in base64. It needs no mainzd.`,
		Example: `  mainz get locking door
  mainz get locking door -o json`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			db, end, err := lookAt(cmd, args[0])
			if err != nil {
				return err
			}
			defer end()
			v, err := db.Fetch(cmd.Context(), []byte(args[1]))
			if err != nil {
				return err
			}
			if jsonOutput(cmd) {
				return newEncoder(cmd.OutOrStdout()).Encode(map[string]any{"key": []byte(args[1]), "value": v})
			}
			_, err = cmd.OutOrStdout().Write(v)
			return err
		},
	})
}

// valueOf is an argument, or standard input if that is "-".
func valueOf(cmd *cobra.Command, arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	return io.ReadAll(io.LimitReader(cmd.InOrStdin(), ltdb.MaxValueLimit+1))
}

// done says in JSON that it worked; people see that by the silence.
func done(cmd *cobra.Command, err error) error {
	if err == nil && jsonOutput(cmd) {
		err = newEncoder(cmd.OutOrStdout()).Encode(map[string]bool{"ok": true})
	}
	return err
}

func putCommand() *cobra.Command {
	return changing(&cobra.Command{
		Use:   "put DATABASE KEY VALUE",
		Short: "Store a value; - reads it from standard input",
		Example: `  mainz put --create locking door open
  mainz put locking door - < value`,
		Args: cobra.ExactArgs(3),
	}, func(ctx context.Context, cmd *cobra.Command, db *mainz.DB, args []string) error {
		v, err := valueOf(cmd, args[1])
		if err == nil {
			err = db.Store(ctx, []byte(args[0]), v)
		}
		return done(cmd, err)
	})
}

func appendCommand() *cobra.Command {
	var condition uint32
	var hold time.Duration
	cmd := changing(&cobra.Command{
		Use:   "append DATABASE KEY VALUE",
		Short: "Append to a value if a condition holds",
		Long: `Appends under condition 0 (always) unless --condition says otherwise, and ends
with 9 if that is false. In a database of mode pieces the value is a piece, which
goes with the process that appended it: there --hold says how long this one stays,
an interrupt ends it before.`,
		Example: `  mainz append locking door closed
  mainz append --condition 1 locking leader me
  mainz append --hold 10m --condition 1 open-files /etc/motd maintenance`,
		Args: cobra.ExactArgs(3),
	}, func(ctx context.Context, cmd *cobra.Command, db *mainz.DB, args []string) error {
		v, err := valueOf(cmd, args[1])
		if err != nil {
			return err
		}
		piece, err := db.ConditionalAppend(ctx, mainz.ConditionID(condition), []byte(args[0]), v)
		if err = done(cmd, err); err != nil || hold == 0 {
			return err
		}
		select {
		case <-cmd.Context().Done():
		case <-time.After(hold):
		}
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return db.RemoveAndTrigger(end, []byte(args[0]), piece)
	})
	cmd.Flags().Uint32Var(&condition, "condition", 0, "`number` of the condition")
	cmd.Flags().DurationVar(&hold, "hold", 0, "append a piece, and take it out after this `time`")
	return cmd
}

func removeCommand() *cobra.Command {
	var condition uint32
	cmd := changing(&cobra.Command{
		Use:   "remove DATABASE KEY VALUE",
		Short: "Take a part out of a value, as a condition finds it",
		Example: `  mainz remove locking door closed
  mainz remove --condition 0 locking door - < part`,
		Args: cobra.ExactArgs(3),
	}, func(ctx context.Context, cmd *cobra.Command, db *mainz.DB, args []string) error {
		v, err := valueOf(cmd, args[1])
		if err == nil {
			err = db.RemoveMatching(ctx, mainz.ConditionID(condition), []byte(args[0]), v)
		}
		return done(cmd, err)
	})
	cmd.Flags().Uint32Var(&condition, "condition", 0, "`number` of the condition")
	return cmd
}

func deleteCommand() *cobra.Command {
	return changing(&cobra.Command{
		Use:     "delete DATABASE KEY",
		Short:   "Delete a record",
		Example: `  mainz delete locking door`,
		Args:    cobra.ExactArgs(2),
	}, func(ctx context.Context, cmd *cobra.Command, db *mainz.DB, args []string) error {
		return done(cmd, db.Delete(ctx, []byte(args[0])))
	})
}

func wipeCommand() *cobra.Command {
	return changing(&cobra.Command{
		Use:     "wipe DATABASE",
		Short:   "Delete all records of a database",
		Long:    `Deletes one record after the other, and waits for those that are locked.`,
		Example: `  mainz wipe locking`,
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, cmd *cobra.Command, db *mainz.DB, _ []string) error {
		n := 0
		for e, err := range db.Traverse(ctx) {
			if err != nil {
				return err
			}
			switch err := db.Delete(ctx, e.Key); {
			case err == nil:
				n++
			case !errors.Is(err, mainz.ErrNotFound):
				return err
			}
		}
		return show(cmd, map[string]int{"deleted": n}, func(w io.Writer) { fmt.Fprintf(w, "%d records deleted\n", n) })
	})
}

type record struct {
	Key  []byte `json:"key"`
	Data []byte `json:"value"`
	RSN  uint64 `json:"rsn"`
}

// walk is dump and traverse.
func walk(cmd *cobra.Command, name string, f func(w *bufio.Writer, e ltdb.Entry)) error {
	db, end, err := lookAt(cmd, name)
	if err != nil {
		return err
	}
	defer end()
	w := bufio.NewWriter(cmd.OutOrStdout())
	enc := newEncoder(w)
	for e, err := range db.Traverse(cmd.Context()) {
		if err != nil {
			return errors.Join(err, w.Flush())
		}
		if !jsonOutput(cmd) {
			f(w, e)
		} else if err := enc.Encode(record{e.Key, e.Data, e.RSN}); err != nil {
			return err
		}
	}
	return w.Flush()
}

func dumpCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "dump DATABASE",
		Short: "Print all records, as tdbdump does",
		Long: `Prints each record in the format of tdbdump; with -o json one object a line,
with key and value in base64. It takes no lock: records that are changed
meanwhile are printed as they were at some time. It needs no mainzd.`,
		Example: `  mainz dump locking
  mainz dump locking -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return walk(cmd, args[0], func(w *bufio.Writer, e ltdb.Entry) {
				fmt.Fprintf(w, "{\nkey(%d) = \"", len(e.Key))
				escape(w, e.Key)
				fmt.Fprintf(w, "\"\ndata(%d) = \"", len(e.Data))
				escape(w, e.Data)
				fmt.Fprint(w, "\"\n}\n")
			})
		},
	})
}

// escape writes bytes as tdbdump does.
func escape(w *bufio.Writer, b []byte) {
	for _, c := range b {
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			w.WriteByte(c)
		} else {
			fmt.Fprintf(w, "\\%02X", c)
		}
	}
}

func traverseCommand() *cobra.Command {
	return onNode(&cobra.Command{
		Use:   "traverse DATABASE",
		Short: "List all records: key, length of the value, number of changes",
		Example: `  mainz traverse locking
  mainz traverse locking -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return walk(cmd, args[0], func(w *bufio.Writer, e ltdb.Entry) {
				fmt.Fprintf(w, "%q\t%d\t%d\n", e.Key, len(e.Data), e.RSN)
			})
		},
	})
}
