package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/agent/internal/crash"
	"github.com/skein-fleet/skein/proto/wire"
)

// openCrash reads what the start before left and marks that this one runs. A
// disk that cannot be written costs the bundle, nothing else.
func (a *Agent) openCrash() {
	r, err := crash.Open(crash.Config{
		Files: a.opts.Files, Now: a.opts.Now, BootID: func() uint64 { return a.facts().BootID }, Version: a.opts.Version,
		Line: a.opts.BoardLine, Log: a.opts.LogTail, Journal: a.journalLines, Panic: a.opts.LastPanic, Failed: a.noteDisk,
	})
	if err != nil {
		a.noteDisk(err)
		a.log.Warn("keep what a crash would leave", "error", err)
	}
	if r == nil {
		return
	}
	a.crashes.Store(r)
	if c := r.Pending(); c != nil {
		a.log.Warn("a start before this one was broken off", "what", c.Kind, "crash", c.Number, "last-seen", time.UnixMilli(c.Time).UTC())
	}
}

// crashLoop keeps the ring of what a crash leaves, and sends what an earlier one
// left, once.
func (a *Agent) crashLoop(ctx context.Context) error {
	r := a.crashes.Load()
	if r == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for {
		c := r.Pending()
		up, changed := a.conn.up()
		if c == nil {
			return <-done
		}
		if !up {
			select {
			case <-ctx.Done():
				return <-done
			case <-changed:
			}
			continue
		}
		msg := *c
		msg.ID = a.ids.next()
		if err := a.sendCrash(ctx, &msg); err != nil {
			a.logSend(err)
			if !pause(ctx, time.Second+rand.N(4*time.Second)) {
				return <-done
			}
		}
	}
}

func (a *Agent) sendCrash(ctx context.Context, c *wire.Crash) error {
	if err := a.send(ctx, wire.UpLog, c); err != nil {
		return err
	}
	return a.crashes.Load().Sent(c.Number)
}

// endCrash marks that this start was ended.
func (a *Agent) endCrash() {
	if r := a.crashes.Load(); r != nil {
		if err := r.End(); err != nil {
			a.log.Info("the end of this start is not noted", "error", err)
		}
	}
}

// noteExit keeps how a model server ended, for what is told of a crash.
func (a *Agent) noteExit(text string) {
	if r := a.crashes.Load(); r != nil {
		r.Exit(text)
	}
}
