package virtual

import (
	"context"
	"errors"
	"maps"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/jetson"
)

// Name is the name under which the device enrols.
func (d *Device) Name() string { return d.name }

// Number is the device's number in its fleet, from 1.
func (d *Device) Number() int { return d.o.Number }

// ID is the device's id, empty before it is enrolled.
func (d *Device) ID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id
}

// Model is the key of the board's model.
func (d *Device) Model() string { return d.o.Model }

// Labels are those that the device enrols with.
func (d *Device) Labels() map[string]string { return maps.Clone(d.o.Labels) }

// Work says what the application did.
func (d *Device) Work() Work { return d.board.work() }

// BytesReceived is what came over the device's line, protocols included.
func (d *Device) BytesReceived() int64 { return d.line.Received() }

// MessagesLost is how many messages from the control plane were lost on purpose.
func (d *Device) MessagesLost() int64 {
	d.radio.mu.Lock()
	defer d.radio.mu.Unlock()
	return d.radio.lost
}

// Acknowledged are the events of this device that the control plane has
// acknowledged, in order.
func (d *Device) Acknowledged() []wire.Event {
	d.radio.mu.Lock()
	defer d.radio.mu.Unlock()
	return append([]wire.Event(nil), d.radio.events...)
}

// Starts is how often the device was started.
func (d *Device) Starts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts
}

// Status is what the agent says of itself; false while none runs.
func (d *Device) Status() (agent.Status, bool) {
	d.mu.Lock()
	a := d.agent
	d.mu.Unlock()
	if a == nil {
		return agent.Status{}, false
	}
	return a.Status(), true
}

// ApplyBundle gives the agent a bundle file that somebody carried to the
// device, and returns when it is copied and accepted.
func (d *Device) ApplyBundle(ctx context.Context, path string) error {
	d.mu.Lock()
	a := d.agent
	d.mu.Unlock()
	if a == nil {
		return errors.New("no agent runs there now")
	}
	_, err := a.ApplyBundle(ctx, path, true)
	return err
}

// Serves reports whether the release is committed on the device and its
// workload is the one that answers now.
func (d *Device) Serves(ctx context.Context, release ota.Digest) bool {
	d.mu.Lock()
	a, server := d.agent, d.server
	d.mu.Unlock()
	if a == nil || server == nil {
		return false
	}
	st := a.Status()
	if st.Running != string(release) || st.Phase == wire.PhaseUpdating {
		return false
	}
	id := server.serving(ctx)
	return len(id) >= 32 && id[:32] == release.Hex()[:32]
}

// Throttled reports that heat holds the board's clocks down.
func (d *Device) Throttled() (yes bool) {
	d.board.with(func(b *jetson.Board) { yes = b.Throttled() })
	return yes
}

// Dead reports that the board switched itself off.
func (d *Device) Dead() (yes bool) {
	d.board.with(func(b *jetson.Board) { yes = b.Dead() })
	return yes
}

// Tegrastats is the line that tegrastats prints on the board now.
func (d *Device) Tegrastats() (line string) {
	d.board.with(func(b *jetson.Board) { line = b.Tegrastats() })
	return line
}
