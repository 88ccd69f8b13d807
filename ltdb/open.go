package ltdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// creating bounds how long a client whose context has no deadline waits for
// another one that makes the segment: to populate a large one takes seconds on
// a busy machine, and many programs may be started at once.
const creating = 10 * time.Second

// Open shares the store in dir with every other process that opens it. By
// custom dir is …/<cluster>/<pnn>/v1 on a ramdisk. ctx bounds the attach; if it
// has no deadline, Open waits at most 2 s for whoever replaces the segment,
// 10 s for another client that makes it, and returns then what it waited for,
// ErrNotRunning or ErrInUse.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.ReadOnly {
		seg, err := shm.AttachReadOnly(ctx, dir, layout())
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
		warn(seg, opts)
		s, err := newStore(seg)
		if err != nil {
			seg.Close()
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
		return s, nil
	}
	seg, err := attachOrCreate(ctx, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	warn(seg, opts)
	s, err := join(ctx, seg, opts)
	if err != nil {
		seg.Close()
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return s, nil
}

// check says which options contradict each other.
func (o *Options) check() error {
	if !o.ReadOnly {
		return nil
	}
	for _, c := range []struct {
		set  bool
		name string
	}{{o.Create, "Create"}, {o.Wipe, "Wipe"}, {len(o.Conditions) > 0, "Conditions"}, {o.Doorbell != nil, "Doorbell"}} {
		if c.set {
			return fmt.Errorf("option %s is for who may write, and ReadOnly is set: %w", c.name,
				ErrMisuse)
		}
	}
	return nil
}

func warn(seg *shm.Segment, opts Options) {
	if opts.Log == nil {
		return
	}
	for _, w := range seg.Warnings(opts.dispatcher) {
		opts.Log.Warn("segment", "dir", seg.Dir(), "warning", w)
	}
}

// warnConfig says which configured values the segment, which was there, does not have.
func warnConfig(seg *shm.Segment, opts Options) {
	if opts.Log == nil {
		return
	}
	for _, d := range opts.Config.Differences(inForce(seg)) {
		opts.Log.Warn("a configured value is not in force: the segment was made with another one, and only a new one (--wipe) takes it",
			"dir", seg.Dir(), "setting", d.Setting, "configured", d.Configured, "in_force", d.InForce)
	}
}

// attachOrCreate tries to attach first: that takes no lock, and it is what
// all but the first client do.
func attachOrCreate(ctx context.Context, dir string, opts Options) (*shm.Segment, error) {
	if !opts.Wipe {
		seg, err := shm.Attach(ctx, dir, layout())
		if !opts.Create || !absent(err) {
			return seg, err
		}
	}
	cfg, err := segmentConfig(opts.Config)
	if err != nil {
		return nil, err
	}
	return createSegment(ctx, dir, opts, cfg)
}

// createSegment makes the segment, or attaches to the one that another client
// makes at the same time.
func createSegment(ctx context.Context, dir string, opts Options, cfg shm.Config) (*shm.Segment, error) {
	if err := shm.MakeDir(dir, cfg); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(creating)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	for {
		seg, err := createOwned(ctx, dir, opts, cfg)
		if err == nil || opts.Wipe || !errors.Is(err, ErrInUse) {
			return seg, err
		}
		// Somebody owns the directory. If it is another client, it makes the
		// segment that we want.
		if seg, err := shm.Attach(ctx, dir, layout()); !absent(err) {
			return seg, err
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// createOwned makes the segment under the owner lock, unless it is there by now.
func createOwned(ctx context.Context, dir string, opts Options, cfg shm.Config) (*shm.Segment, error) {
	owner, err := shm.LockOwner(dir)
	if err != nil {
		return nil, err
	}
	defer owner.Release()
	if !opts.Wipe {
		if seg, err := shm.Attach(ctx, dir, layout()); !absent(err) {
			return seg, err
		}
	}
	return shm.Create(ctx, dir, cfg, fill)
}

// absent reports whether err says that there is no segment, or only the
// remains of one from before the last boot.
func absent(err error) bool { return errors.Is(err, ErrNotRunning) || errors.Is(err, ErrStale) }
