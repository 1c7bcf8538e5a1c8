package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/skein-fleet/skein/ota"
)

// zeros gives ranges of nothing but zeros, and more than was asked for.
type zeros struct{ blamed ota.Digest }

func (z *zeros) Open(_ context.Context, _ ota.Digest, _, length int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(make([]byte, length+100))), nil
}

func (z *zeros) Blame(d ota.Digest) { z.blamed = d }

func readAll(t *testing.T, s Source, length int64) {
	t.Helper()
	r, err := s.Open(t.Context(), ota.DigestOf(nil), 0, length)
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err != nil || n != length+100 {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestLimit(t *testing.T) {
	for name, l := range map[string]Limiter{
		"bucket": func() Limiter { b := new(Bucket); b.Set(64 << 10); return b }(),
		"rate":   rate.NewLimiter(64<<10, 16<<10),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := Limit(&zeros{}, l)
				var wg sync.WaitGroup
				for range 4 { // all at the pace of one
					wg.Go(func() { readAll(t, s, 160<<10) })
				}
				wg.Wait()
				if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
					t.Errorf("640 KiB at 64 KiB/s took %s", took)
				}
			})
		})
	}
}

func TestLimitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(Bucket)
		z := &zeros{}
		s := Limit(z, b)
		began := time.Now()
		readAll(t, s, 10<<20)
		if took := time.Since(began); took != 0 {
			t.Errorf("without a limit it took %s", took)
		}
		b.Set(1 << 20)
		readAll(t, s, 10<<20)
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %s", took)
		}
		b.Set(8 << 10)
		time.AfterFunc(10*time.Second, func() { b.Set(0) })
		began = time.Now()
		readAll(t, s, 10<<20)
		if took := time.Since(began); took < 10*time.Second || took > 13*time.Second {
			t.Errorf("until the limit was lifted it took %s", took)
		}
		s.(Blamer).Blame("x")
		if z.blamed != "x" {
			t.Error("blame does not arrive")
		}
	})
}

// TestLimitEnds holds that a read that waits ends with its context, for its
// cause.
func TestLimitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(Bucket)
		b.Set(1)
		ctx, cancel := context.WithCancelCause(t.Context())
		r, err := Limit(&zeros{}, b).Open(ctx, ota.DigestOf(nil), 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		because := errors.New("enough")
		time.AfterFunc(time.Minute, func() { cancel(because) })
		began := time.Now()
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, because) || time.Since(began) != time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}
