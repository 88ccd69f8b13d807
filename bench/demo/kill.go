package demo

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/bench/trace"
)

// mostLooks is how often the moment for a kill is looked for. A trace so small
// that there is no good one must not keep the demo from its end.
const mostLooks = 1000

// nextKill sets the clock for the first of the plan.
func (r *run) nextKill() {
	r.looks = 0
	r.killAt = nil
	if len(r.plan) > 0 {
		due := time.Duration(float64(r.Duration) * r.plan[0].at)
		r.killAt = time.After(due - time.Since(r.began))
	}
}

// tryKill kills what is next, if this is the moment, and else looks again a
// little later.
func (r *run) tryKill(ctx context.Context) error {
	r.looks++
	did, err := r.plan[0].try(r, ctx, r.looks >= mostLooks)
	if err != nil {
		return err
	}
	if !did {
		r.killAt = time.After(lookEvery)
		return nil
	}
	r.plan, r.killAt, r.killing = r.plan[1:], nil, true
	return nil
}

// dealtWith is called when what a kill has left is cleaned up.
func (r *run) dealtWith() {
	r.killing = false
	r.nextKill()
}

// killDaemon kills mainzd in the first half of a pass, when all clients have
// much to do.
func (r *run) killDaemon(ctx context.Context, must bool) (did bool, err error) {
	done, opens := r.stored()-r.passBegan, uint64(r.Trace.Opens)
	if !r.allBusy() || !must && (done < opens/20 || done > opens/2) {
		return false, nil
	}
	r.spawn(func() error {
		if err := r.restartDaemon(ctx, !must); err != nil {
			return err
		}
		r.do(func() error {
			r.dealtWith()
			return nil
		})
		return nil
	})
	return true, nil
}

// killClient kills the victim in the middle of a pass, when its death leaves
// work for everybody: it has files open, one of them alone, and is just now
// inside a record's lock. To see that it must be stopped first, since locks are
// held for some tens of nanoseconds. While it stands still, what is stored is
// held against what it was told.
func (r *run) killClient(ctx context.Context, must bool) (did bool, err error) {
	p := r.procs[victim]
	if !p.busy || !p.stop() {
		return false, nil
	}
	locks := r.locks(p)
	left, err := r.entriesOf(ctx, p.owner)
	if err != nil {
		return false, err
	}
	if !must && (locks == 0 || left.alone < 0) {
		p.goOn()
		return false, nil
	}
	told, err := os.ReadFile(journalPath(r.dir, p.owner))
	if err != nil {
		return false, fmt.Errorf("read the client's journal: %w", err)
	}
	lost, resurrected := journal(told).verdict(left.opens)
	r.res.AckedLost += uint64(lost)
	r.res.Damaged += uint64(resurrected)
	r.res.EntriesCleaned, r.res.OwnerDied = len(left.opens), locks
	r.awaitTrigger(ctx, left.alone)

	r.killedAt = time.Now()
	p.killed = true
	_ = p.cmd.Process.Kill() // an error means that it has exited: then it was not us, and that is an event
	r.res.Kills++
	r.report(fmt.Sprintf("client %d is killed", p.Client))
	return true, nil
}

// awaitTrigger opens a file that the victim has open, as nobody may beside it,
// and waits until mainzd has removed the victim's entry.
func (r *run) awaitTrigger(ctx context.Context, file int64) {
	r.woken = make(chan struct{})
	if file < 0 {
		close(r.woken)
		return
	}
	key := fileKey(uint32(file))
	piece := appendEntry(nil, uint32(file), entry{owner: owner{Client: Clients},
		mode: trace.MakeMode(trace.Read|trace.Write, trace.DenyAll)})
	begun := make(chan struct{})
	r.spawn(func() error {
		close(begun)
		p, err := r.db.ConditionalAppendWait(ctx, mainz.ShareModes, key[:], piece)
		if err != nil {
			return fmt.Errorf("wait for file %d, which the victim has open: %w", file, err)
		}
		at := time.Now()
		r.do(func() error {
			r.res.TriggerMS = milliseconds(at.Sub(r.killedAt))
			return nil
		})
		close(r.woken)
		return r.db.RemoveAndTrigger(ctx, key[:], p)
	})
	<-begun
}

// watchCleanup looks until mainzd has removed what the victim had in the
// database, and the opener that waits for it is woken. It runs beside the loop.
func (r *run) watchCleanup(ctx context.Context, victim owner) error {
	left, looks := 1, 0
	for ; looks < r.looksAtMost && left > 0; looks++ {
		found, err := r.entriesOf(ctx, victim)
		if err != nil {
			return err
		}
		if left = len(found.opens); left == 0 {
			break
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	cleaned := milliseconds(time.Since(r.killedAt))
	woken := false
	for ; looks < r.looksAtMost && !woken; looks++ {
		select {
		case <-r.woken:
			woken = true
		default:
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	r.do(func() error {
		switch {
		case left > 0:
			r.problem(fmt.Sprintf("mainzd has not removed %d entries of killed client %d, %.0f s after its death",
				left, victim.Client, cleaned/1000))
		case !woken:
			r.problem(fmt.Sprintf("the opener that waits for an entry of killed client %d was not woken by its removal", victim.Client))
		default:
			r.res.CleanupMS = cleaned
			r.report(fmt.Sprintf("client %d is cleaned up after", victim.Client))
		}
		r.dealtWith()
		return nil
	})
	return nil
}

// locks is how many record locks the client holds or waits for.
func (r *run) locks(p *process) (n int) {
	for _, c := range r.store.Clients() {
		if int(c.PID) == p.cmd.Process.Pid {
			n += c.Locks + c.Waiting
		}
	}
	return n
}

// entries are those of one owner.
type entries struct {
	opens []uint32
	alone int64 // a file that nobody else has open; -1: none
}

func (r *run) entriesOf(ctx context.Context, o owner) (entries, error) {
	found := entries{alone: -1}
	for rec, err := range r.records.Traverse(ctx) {
		if err != nil {
			return found, fmt.Errorf("look for entries of client %d: %w", o.Client, err)
		}
		file, err := keyFile(rec.Key)
		mine, others := len(found.opens), 0
		if err == nil {
			err = scan(rec.Data, file, func(e entry) {
				if e.owner == o {
					found.opens = append(found.opens, e.open)
				} else {
					others++
				}
			})
		}
		if err != nil {
			return found, err
		}
		if others == 0 && len(found.opens) > mine {
			found.alone = int64(file)
		}
	}
	return found, nil
}
