package blob

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
)

func TestAdopt(t *testing.T) {
	both(t, func(t *testing.T, s *Store, f slot.Files) {
		d := ota.DigestOf([]byte("upload"))
		if _, err := s.Adopt(t.Context(), "uploads/1", d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent upload: %v", err)
		}
		for range 2 { // the second finds the blob there
			if err := f.WriteFile("uploads/1", []byte("upload")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Adopt(t.Context(), "uploads/1", ota.DigestOf(nil)); !errors.Is(err, ErrDigestMismatch) {
				t.Errorf("wrong digest: %v", err)
			}
			if b, err := f.ReadFile("uploads/1"); string(b) != "upload" {
				t.Errorf("refused upload lost: %q, %v", b, err)
			}
			if n, err := s.Adopt(t.Context(), "uploads/1", d); n != 6 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if _, err := f.ReadFile("uploads/1"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("upload left behind: %v", err)
			}
			if got := read(t, s, d); got != "upload" {
				t.Errorf("content %q", got)
			}
		}
	})
}

// TestAdoptAcrossPowerCuts: cut anywhere, the bytes are an upload or a whole blob.
func TestAdoptAcrossPowerCuts(t *testing.T) {
	d := ota.DigestOf([]byte("upload"))
	for cut := range 10 {
		for seed := range uint64(30) {
			m := slot.NewMem()
			if err := m.WriteFile("uploads/1", []byte("upload")); err != nil {
				t.Fatal(err)
			}
			m.FailAfter(cut)
			_, err := NewStore(m).Adopt(t.Context(), "uploads/1", d)
			after := m.Crash(seed)
			s := NewStore(after)
			_, uploadErr := after.ReadFile("uploads/1")
			if s.Has(d) {
				if err := s.Verify(t.Context(), d); err != nil {
					t.Fatalf("cut %d, seed %d: %v", cut, seed, err)
				}
			} else if err == nil || uploadErr != nil {
				t.Fatalf("cut %d, seed %d: lost (%v, %v)", cut, seed, err, uploadErr)
			}
		}
	}
}
