package selfupdate

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/skein-fleet/skein/ota"
)

// Self is the running agent beside its slots.
type Self struct {
	*Slots
	// Slot is where this process was started from.
	Slot string
	// Program is the path of the running binary, for Factory.
	Program string

	digest ota.Digest // of the running binary, once asked
}

// Running is the content of the binary that runs. One goroutine asks.
func (s *Self) Running(ctx context.Context) (ota.Digest, error) {
	if s.digest != "" {
		return s.digest, nil
	}
	if b := s.Record().Slots[s.Slot]; s.Slot != Factory && b.Digest != "" {
		s.digest = b.Digest
		return s.digest, nil
	}
	f, err := os.Open(s.Program)
	if err != nil {
		return "", fmt.Errorf("read the running agent: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return "", fmt.Errorf("read the running agent: %w", err)
	}
	s.digest = ota.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
	return s.digest, nil
}

// OnTrial says whether this process is the binary that has to show itself.
func (s *Self) OnTrial() bool {
	t := s.Record().Trial
	return t != nil && t.Slot == s.Slot
}

// Settle brings the record in line with what is committed, when an agent
// starts: update is the one under way, empty for none, current the release
// that is committed. restart says that another binary than this has to run.
func (s *Self) Settle(update string, current ota.Digest) (restart bool, err error) {
	t := s.Record().Trial
	switch {
	case t == nil || t.Update == update:
		return false, nil
	case update == "" && t.Release == current && s.OnTrial():
		return false, s.Keep() // the power went between the two writes
	}
	mine := s.OnTrial()
	return mine, s.GoBack()
}
