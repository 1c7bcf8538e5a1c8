package trust

import (
	"crypto"
	"fmt"
	"testing"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// benchRepo lists n releases.
func benchRepo(b *testing.B, n int) *Repo {
	b.Helper()
	f := slot.NewMem()
	if _, err := initDev(f, "d", start); err != nil {
		b.Fatal(err)
	}
	r, err := openRepo(f)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		path := fmt.Sprintf("releases/meter/%d", i)
		if err := putTarget(&r.targets.Signed, path, 1, ota.DigestOf([]byte(path)), TargetCustom{Counter: uint64(i + 1)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.signTargets(start); err != nil {
		b.Fatal(err)
	}
	return r
}

func BenchmarkAddTarget(b *testing.B) {
	r := benchRepo(b, 1000)
	for i := 0; b.Loop(); i++ {
		if err := r.AddTarget(b.Context(), fmt.Sprintf("more/%d", i), 1, ota.DigestOf(nil), TargetCustom{Counter: 1}, start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRefresh(b *testing.B) {
	r := benchRepo(b, 1000)
	for _, idle := range []bool{true, false} {
		b.Run(map[bool]string{true: "idle", false: "first"}[idle], func(b *testing.B) {
			c, err := NewClient(slot.NewMem(), r.Root())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if !idle {
					if c, err = NewClient(slot.NewMem(), r.Root()); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.Refresh(b.Context(), r.Source(), start); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMessage(b *testing.B) {
	s := signer(b, edKey(1))
	keys, payload := []crypto.PublicKey{s.Public()}, make([]byte, 600)
	msg, err := Sign(s, wire.AADDesired, payload)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			if _, err := Sign(s, wire.AADDesired, payload); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := Verify(keys, wire.AADDesired, msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}
