package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/turns"
	"github.com/skein-fleet/skein/proto/wire"
)

// work is what a sender shall look at for one device.
type work uint8

const (
	workDesired  work = 1 << iota // send the desired state if it is not held
	workReport                    // ask for a full report
	workSlowDown                  // ask to wait
	workWatch                     // ask for telemetry every second
)

// slowDownSeconds is what a device is asked to wait in a storm; devices jitter it.
const slowDownSeconds = 120

// watchSeconds is the lease of close watching.
const watchSeconds = 300

// queue holds devices to look at.
type queue = turns.Queue[*twin, work]

func newQueue() *queue { return turns.New[*twin](func(a, b work) work { return a | b }) }

func (f *Fleet) sendLoop(ctx context.Context) {
	for {
		tw, w, ok := f.queue.Take()
		if !ok {
			return
		}
		if err := f.serve(ctx, tw, w); err != nil && ctx.Err() == nil && !errors.Is(err, ErrOffline) {
			f.cfg.Logger.Warn("send to device", "device", tw.id, "error", err)
		}
		f.queue.Done(tw)
	}
}

func (f *Fleet) serve(ctx context.Context, tw *twin, w work) error {
	var errs []error
	for kind, cmd := range map[work]wire.Cmd{
		workReport:   {Kind: wire.CmdReport},
		workSlowDown: {Kind: wire.CmdSlowDown, Seconds: slowDownSeconds},
		workWatch:    {Kind: wire.CmdWatch, Seconds: watchSeconds},
	} {
		if w&kind != 0 {
			errs = append(errs, f.command(ctx, tw, cmd))
		}
	}
	if w&workDesired != 0 {
		errs = append(errs, f.sendDesired(ctx, tw))
	}
	return errors.Join(errs...)
}

// sendDesired sends the desired state when the device does not hold it and the
// last sending is long enough ago.
func (f *Fleet) sendDesired(ctx context.Context, tw *twin) error {
	now := f.cfg.Now()
	tw.mu.Lock()
	soon := tw.wanted != nil && tw.reachable() && f.expiresSoon(tw.wanted)
	tw.mu.Unlock()
	if soon {
		if err := f.reissue(ctx, tw); err != nil {
			return err
		}
	}
	tw.mu.Lock()
	w, id := tw.wanted, tw.dev.ID
	if w == nil || tw.converged() || !tw.reachable() || now.Before(tw.sendAfter) {
		tw.mu.Unlock()
		return nil
	}
	tw.sentAt = now
	tw.sendAfter = now.Add(f.cfg.Resend + rand.N(f.cfg.Resend))
	tw.mu.Unlock()
	err := f.publish(ctx, id, wire.DownDesired, w.Payload)
	f.metrics.sent.WithLabelValues("desired", outcome(err)).Inc()
	return err
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "sent"
	case errors.Is(err, ErrOffline):
		return "offline"
	}
	return "failed"
}

// command signs and sends one command. Its counter is the time in microseconds,
// which grows over restarts too.
func (f *Fleet) command(ctx context.Context, tw *twin, c wire.Cmd) error {
	now := f.cfg.Now()
	tw.mu.Lock()
	active := tw.dev.State == store.DeviceActive
	c.Device = tw.dev.ID
	tw.mu.Unlock()
	if !active {
		return nil
	}
	c.Counter, c.ExpiresAt = uint64(now.UnixMicro()), now.Add(5*time.Minute).Unix()
	payload, err := wire.Marshal(&c)
	if err != nil {
		return err
	}
	signed, err := f.cfg.Director.Sign(wire.AADCmd, payload)
	if err != nil {
		return err
	}
	err = f.publish(ctx, c.Device, wire.DownCmd, signed)
	f.metrics.sent.WithLabelValues("cmd", outcome(err)).Inc()
	return err
}

func (f *Fleet) publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	f.mu.RLock()
	l := f.link
	f.mu.RUnlock()
	if l == nil {
		return ErrOffline
	}
	return l.Publish(ctx, device, kind, payload)
}

// Watch asks a device for telemetry every second for the next five minutes.
func (f *Fleet) Watch(tenant, device string) {
	if tw := f.find(tenant, device); tw != nil {
		f.queue.Add(tw, workWatch)
	}
}

// WatchLease is how long one Watch holds.
const WatchLease = watchSeconds * time.Second

// sweep looks at every device: what is not held is sent again, what expires is
// issued anew.
func (f *Fleet) sweep() {
	now := f.cfg.Now()
	var online, converging int
	for _, tw := range f.all() {
		tw.mu.Lock()
		if tw.online {
			online++
		}
		look := tw.wanted != nil && tw.reachable()
		if look {
			differs := !tw.converged()
			if differs {
				converging++
			}
			look = differs && !now.Before(tw.sendAfter) || f.expiresSoon(tw.wanted)
		}
		tw.mu.Unlock()
		if look {
			f.queue.Add(tw, workDesired)
		}
	}
	f.metrics.online.Set(float64(online))
	f.metrics.converging.Set(float64(converging))
}
