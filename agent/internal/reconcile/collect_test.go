package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// TestCollectKeepsWhatIsNeeded: whatever lies on the disk and wherever the power
// goes, nothing of the running release, of the one to go back to, or of what is
// spared is removed; in the end nothing else is left.
func TestCollectKeepsWhatIsNeeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := slot.NewMem()
		blobs := blob.NewStore(files)
		st, err := state.Open(files)
		if err != nil {
			t.Fatal(err)
		}
		var all []ota.Digest
		for i := range 12 {
			d, err := blobs.PutBytes(fmt.Appendf(nil, "blob %d", i))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		install := func(name string) *state.Install {
			if !rapid.Bool().Draw(t, name) {
				return nil
			}
			i := &state.Install{Release: rapid.SampledFrom(all).Draw(t, "release"), ParamsDigest: []byte(rapid.StringN(1, 3, 8).Draw(t, "params")),
				Blobs: rapid.SliceOfN(rapid.SampledFrom(all), 0, 6).Draw(t, "blobs")}
			i.Blobs = append(i.Blobs, i.Release)
			if err := files.WriteFile(i.Dir()+"/model", []byte(name)); err != nil {
				t.Fatal(err)
			}
			return i
		}
		current, previous, failed := install("current"), install("previous"), install("failed")
		if err := st.Change(func(s *state.State) { s.Current, s.Previous = current, previous }); err != nil {
			t.Fatal(err)
		}
		spare := rapid.SliceOfN(rapid.SampledFrom(all), 0, 3).Draw(t, "spare")
		need, dirs := map[ota.Digest]bool{}, map[string]bool{}
		for _, d := range spare {
			need[d] = true
		}
		for _, i := range []*state.Install{current, previous} {
			if i == nil {
				continue
			}
			dirs[i.Dir()] = true
			for _, d := range i.Blobs {
				need[d] = true
			}
		}
		whole := func(when string) {
			for d := range need {
				if _, err := blobs.ReadAll(t.Context(), d, 100); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
			for dir := range dirs {
				if _, err := files.ReadFile(dir + "/model"); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
		}
		if err := files.Sync(); err != nil {
			t.Fatal(err)
		}
		if after := rapid.IntRange(0, 60).Draw(t, "cut after"); after < 40 {
			files.FailAfter(after)
		}
		err = NewExecutor(Config{Files: files, Blobs: blobs, State: st}).collect(t.Context(), spare...)
		files.FailAfter(-1)
		if err != nil { // the power went
			files = files.Crash(rapid.Uint64().Draw(t, "seed"))
			blobs = blob.NewStore(files)
			whole("after the cut")
			if st, err = state.Open(files); err != nil {
				t.Fatal(err)
			}
			err = NewExecutor(Config{Files: files, Blobs: blobs, State: st}).collect(t.Context(), spare...)
		}
		if err != nil {
			t.Fatal(err)
		}
		whole("after it")
		for _, d := range all {
			if blobs.Has(d) != need[d] {
				t.Fatalf("%s: there %t, needed %t", d.Short(), blobs.Has(d), need[d])
			}
		}
		if failed != nil && !dirs[failed.Dir()] {
			if _, err := files.ReadFile(failed.Dir() + "/model"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the staged folder of a failed update stays: %v", err)
			}
		}
	})
}
