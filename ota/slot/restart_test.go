package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// TestKillThenPowerCut kills the process at every operation, lets the next one
// do the same again until it is told that it is durable, and then cuts the
// power: what the second process was told must hold, also where the first had
// done half of it.
func TestKillThenPowerCut(t *testing.T) {
	entry := Entry{Update: "u", Step: ota.StepFetch, Time: time.Unix(1, 0)}
	for name, c := range map[string]struct {
		do   func(f Files) error
		kept func(f Files) error
	}{
		"write into new directories": {
			func(f Files) error { return f.WriteFile("a/b/c", []byte("x")) },
			func(f Files) error { _, err := f.ReadFile("a/b/c"); return err },
		},
		"make directories": {
			func(f Files) error { return f.MkdirAll("a/b/c") },
			func(f Files) error { _, err := f.ReadDir("a/b/c"); return err },
		},
		"append to a journal": {
			func(f Files) error {
				j, err := OpenJournal(f, "a/b/journal")
				if err != nil {
					return err
				}
				if len(j.Entries()) == 0 {
					err = j.Append(entry)
				}
				return errors.Join(err, j.Close())
			},
			func(f Files) error {
				j, err := OpenJournal(f, "a/b/journal")
				if err == nil && len(j.Entries()) == 0 {
					err = fs.ErrNotExist
				}
				return err
			},
		},
		"rename into a new directory": {
			func(f Files) error {
				if _, err := f.ReadFile("a/b/new"); err == nil {
					return f.Sync() // an earlier process had renamed it
				}
				return errors.Join(f.WriteFile("old", []byte("x")), f.Rename("old", "a/b/new"))
			},
			func(f Files) error { _, err := f.ReadFile("a/b/new"); return err },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				m := NewMem()
				m.FailAfter(n)
				err := c.do(m)
				again := m.Restart()
				if err := c.do(again); err != nil {
					t.Fatal(err)
				}
				for seed := range uint64(20) {
					if err := c.kept(again.Crash(seed)); err != nil {
						t.Fatal(fmt.Errorf("killed after %d operations, power cut %d: %w", n, seed, err))
					}
				}
				if err == nil {
					break
				}
			}
		})
	}
}
