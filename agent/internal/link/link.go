// Package link connects the agent to the control plane. It owns the Link port,
// its MQTT driver (and with it paho) and an in-memory twin for tests.
//
// Invariants: Run keeps the link up until its context ends and returns only
// after what it started has ended; Publish returns nil only after the other
// side has acknowledged; presence is published on every connection and its
// offline twin is the last will. The agent imports it; nobody else.
package link

import (
	"context"
	"errors"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Errors of the port.
var (
	// ErrOffline is returned by Publish while there is no connection, or when
	// it ends before the acknowledgement.
	ErrOffline = errors.New("link is offline")
	// ErrRefused is the cause given to Disconnected when the other side does
	// not accept this device's certificate (expired, revoked, unknown).
	ErrRefused = errors.New("certificate refused by the control plane")
)

// Handler is what a Link calls. No call may block for long except Connected,
// and Message may not publish itself.
type Handler struct {
	// Boot is the boot id in presence, NextID numbers messages that the link
	// itself publishes.
	Boot   uint64
	NextID func() wire.MessageID
	// Connected is called after each connect, on a goroutine of its own, with
	// a context that ends with the connection.
	Connected func(ctx context.Context)
	// Disconnected is called when a connection ended or could not be made.
	Disconnected func(cause error)
	// Message is called for each message on down/.
	Message func(kind wire.Kind, payload []byte)
}

// Link is the connection to the control plane.
type Link interface {
	// Run connects and keeps connected until ctx ends.
	Run(ctx context.Context, h Handler) error
	// Publish sends on the device's own topic of kind and blocks until the
	// other side has it. It may be called at any time, by many.
	Publish(ctx context.Context, kind wire.Kind, payload []byte) error
}

// Slower is a Link that can be told to wait before it connects again.
type Slower interface {
	SlowDown(d time.Duration)
}

// Reconnecter is a Link that can be told to connect anew, with the device's new
// certificate.
type Reconnecter interface {
	Reconnect()
}

// downKinds are what a device subscribes to.
var downKinds = []wire.Kind{wire.DownDesired, wire.DownCmd, wire.DownChunk, wire.DownBuild}
