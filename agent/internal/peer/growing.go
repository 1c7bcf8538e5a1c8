package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
)

// errStopped is returned when what grew grows no more.
var errStopped = errors.New("the transfer of the blob has stopped")

// growing reads a blob while it comes in.
type growing struct {
	ctx   context.Context
	store *blob.Store
	blob  ota.Digest
	pull  *pull       // what makes it grow,
	alive func() bool // or whether something does; both nil: it is whole

	at    int64
	f     io.ReadSeekCloser
	whole bool
	first []byte // read by start
	end   error
}

// start returns when there is a byte at offset, or none will come.
func (g *growing) start(offset int64) error {
	g.at = offset
	buf := make([]byte, pieceSize)
	n, err := g.read(buf)
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, g.Close())
	}
	g.first, g.end = buf[:n], err
	return nil
}

// Read implements io.Reader.
func (g *growing) Read(p []byte) (int, error) {
	if len(g.first) > 0 {
		n := copy(p, g.first)
		g.first = g.first[n:]
		return n, nil
	}
	if g.end != nil {
		return 0, g.end
	}
	return g.read(p)
}

func (g *growing) read(p []byte) (int, error) {
	for {
		stopped := g.stopped() // before the look: what comes after it is seen by the next one
		fresh := g.f == nil
		if fresh {
			if err := g.open(); err != nil {
				return 0, err
			}
		}
		if g.f != nil {
			n, err := g.f.Read(p)
			g.at += int64(n)
			if n > 0 || g.whole || err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
			if err := g.Close(); err != nil {
				return 0, err
			}
			if !fresh { // what it was opened on may have become the whole blob
				continue
			}
		}
		if stopped != nil {
			return 0, fmt.Errorf("read %s: %w", g.blob.Short(), stopped)
		}
		if err := g.wait(); err != nil {
			return 0, err
		}
	}
}

// open opens the blob, or what is there of it, where the reader stands.
func (g *growing) open() error {
	f, _, err := g.store.Open(g.ctx, g.blob)
	g.whole = err == nil
	if errors.Is(err, blob.ErrNotFound) {
		f, err = g.store.OpenPartial(g.blob)
	}
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := f.Seek(g.at, io.SeekStart); err != nil {
		return errors.Join(err, f.Close())
	}
	g.f = f
	return nil
}

// stopped says why no more comes, nil while more may.
func (g *growing) stopped() error {
	switch {
	case g.pull != nil:
		select {
		case <-g.pull.done:
			if g.pull.err != nil {
				return g.pull.err
			}
			return errStopped
		default:
			return nil
		}
	case g.alive != nil && g.alive():
		return nil
	}
	return errStopped
}

func (g *growing) wait() error {
	var done <-chan struct{}
	if g.pull != nil {
		done = g.pull.done
	}
	t := time.NewTimer(lookAt)
	defer t.Stop()
	select {
	case <-g.ctx.Done():
		return context.Cause(g.ctx)
	case <-done:
	case <-t.C:
	}
	return nil
}

// Close implements io.Closer.
func (g *growing) Close() error {
	if g.f == nil {
		return nil
	}
	err := g.f.Close()
	g.f = nil
	return err
}
