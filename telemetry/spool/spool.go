// Package spool keeps messages of the device link in order until the control
// plane has them. It owns the port, its memory twin and the Badger driver, and
// is the only importer of Badger.
//
// Invariants: messages leave in the order in which they came; one is gone only
// after Ack, or when the spool is over its bound and says so in Stats; a frame
// that does not check is never handed out. Over the bound, the oldest messages
// are thinned first (Options.Thin), and only when all of them are thin is the
// oldest dropped. The contents may be lost by contract (identity and state of a
// device are elsewhere): a damaged store starts afresh and counts it.
package spool

import (
	"errors"

	"github.com/skein-fleet/skein/proto/wire"
)

// Errors of the port.
var (
	// ErrEmpty is returned by Next when nothing waits.
	ErrEmpty = errors.New("spool is empty")
	// ErrNoSpace is returned by Append when the file system is down to the
	// reserve; the message is counted as dropped.
	ErrNoSpace = errors.New("file system is down to the reserve")
	// ErrTooLarge is returned by Append for a message over the bound.
	ErrTooLarge = errors.New("message larger than the spool's bound")
	// ErrInUse is returned by an open while another process, or another part of
	// this one, has the spool open.
	ErrInUse = errors.New("spool is in use")
	// ErrClosed is returned by all calls after Close.
	ErrClosed = errors.New("spool is closed")
)

// Frame is one waiting message.
type Frame struct {
	Seq     uint64
	Kind    wire.Kind
	Payload []byte
}

// Stats says what the spool holds and what it lost since it was opened.
type Stats struct {
	Frames  int64
	Bytes   int64  // payloads and framing
	Thinned uint64 // messages made smaller to make room
	Dropped uint64 // messages lost to the bound or to the reserve
	Damaged uint64 // frames that did not check, were skipped and lost
	Resets  uint64 // times a damaged store was moved aside
}

// Spool is a bounded queue of messages. All calls are safe for concurrent use.
type Spool interface {
	// Append adds a message at the end. The payload may be reused afterwards.
	Append(kind wire.Kind, payload []byte) error
	// Next returns the oldest message without taking it, or ErrEmpty.
	Next() (Frame, error)
	// Ack forgets the message; an unknown seq is no error.
	Ack(seq uint64) error
	Stats() Stats
	// Close releases what the spool holds; waiting messages of a durable spool
	// are there at the next open.
	Close() error
}

// Options are common to the drivers.
type Options struct {
	// MaxBytes bounds what waits; 0 means 64 MiB.
	MaxBytes int64
	// Thin returns a smaller form of a message, or false when it has none.
	// It is called at most once for each message.
	Thin func(kind wire.Kind, payload []byte) ([]byte, bool)
}

const defaultMaxBytes = 64 << 20

func (o Options) maxBytes() int64 {
	if o.MaxBytes <= 0 {
		return defaultMaxBytes
	}
	return o.MaxBytes
}
