// Package stream is the protocol by which blobs and trust metadata come over
// the device link: requests with a window and a bitmap (wire.Get), blocks that
// may be lost, doubled or out of order (wire.Chunk). It owns both ends as pure
// state machines: time is an argument, messages are values, nothing is sent,
// stored or waited for here.
//
// Invariants: what a Receiver gives out is in order and without gaps, whatever
// arrives; memory is bounded by Config.Span at the device and by MaxQueued at
// the server; a block is asked for again only when it is taken for lost, and
// the server never queues a block twice. Agent and control plane import it.
package stream

import (
	"errors"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// What the state machines return, wrapped.
var (
	// ErrLie is returned for messages that cannot be: blocks that nobody asked
	// for, lengths that do not fit, ranges outside of the blob.
	ErrLie = errors.New("impossible message")
	// ErrChanged is returned when a file of metadata is another one now.
	ErrChanged = errors.New("file changed while it was read")
	// ErrTooMuch is returned for requests beyond the server's limits.
	ErrTooMuch = errors.New("too much asked for")
)

// Refused is the error of a Receiver whose request was refused.
type Refused struct {
	Why     wire.Refusal
	Message string
	Wait    time.Duration
}

// Error implements error.
func (r *Refused) Error() string {
	if r.Message == "" {
		return r.Why.String()
	}
	return fmt.Sprintf("%s: %s", r.Why, r.Message)
}

// Block is the size of blocks that a Receiver asks for.
const Block = 4 << 10

// blocksOf returns how many blocks length bytes are.
func blocksOf(length int64, block int) uint64 {
	return uint64((length + int64(block) - 1) / int64(block))
}

// bitmap sets and reads wanted blocks.
type bitmap []byte

func (m bitmap) set(i uint64)      { m[i/8] |= 1 << (i % 8) }
func (m bitmap) has(i uint64) bool { return i/8 < uint64(len(m)) && m[i/8]&(1<<(i%8)) != 0 }
