package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// shelf is a server with what refers to its blobs, and a clock.
type shelf struct {
	*Server
	people http.Handler
	ahead  atomic.Int64 // of the clock

	mu   sync.Mutex // guards refs
	refs map[ota.Digest]bool
}

func newShelf() *shelf {
	s := &shelf{refs: map[ota.Digest]bool{}}
	files := slot.NewMem()
	store := blob.NewStore(files)
	store.TrackUse(s.now)
	s.Server = New(Options{Files: files, Store: store, Now: s.now})
	s.people = s.People()
	return s
}

func (s *shelf) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

func (s *shelf) roots(context.Context) ([]ota.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.refs)), nil
}

func (s *shelf) collect(t interface{ Fatal(...any) }, dry bool) Collected {
	c, err := s.Collect(context.Background(), Collect{Roots: s.roots, Grace: LeastGrace, DryRun: dry})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// upload brings content through the handler, whole.
func (s *shelf) upload(content []byte) (ota.Digest, error) {
	d := ota.DigestOf(content)
	w := httptest.NewRecorder()
	s.people.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v2/skein/blobs/uploads/?digest="+string(d), bytes.NewReader(content)))
	if w.Code != http.StatusCreated {
		return d, fmt.Errorf("upload: %d %s", w.Code, w.Body)
	}
	return d, nil
}

// refer does as whoever makes a model or a release: it looks, then refers.
func (s *shelf) refer(d ota.Digest) bool {
	if !s.store.Has(d) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs[d] = true
	return true
}

// TestNothingInUseIsCollected: with uploads, references and collections going
// on at once, what is referred to and what was just uploaded is there, and what
// neither is goes in the end.
func TestNothingInUseIsCollected(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newShelf()
		contents := make([][]byte, 12)
		for i := range contents {
			contents[i] = fmt.Appendf(nil, "blob %d", i)
		}
		for range rapid.IntRange(1, 6).Draw(rt, "rounds") {
			var wg sync.WaitGroup
			var fresh sync.Map
			for range rapid.IntRange(1, 6).Draw(rt, "clients") {
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
				wg.Go(func() {
					for range 8 {
						c := contents[rng.IntN(len(contents))]
						d := ota.DigestOf(c)
						switch rng.IntN(6) {
						case 0, 1:
							if _, err := s.upload(c); err != nil {
								rt.Error(err)
							}
							fresh.Store(d, true)
						case 2:
							s.refer(d)
						case 3:
							s.mu.Lock()
							delete(s.refs, d)
							s.mu.Unlock()
						default:
							s.collect(rt, rng.IntN(4) == 0)
						}
					}
				})
			}
			wg.Wait()
			for d := range s.refs {
				if _, err := s.store.ReadAll(context.Background(), d, 100); err != nil {
					rt.Fatalf("what is referred to: %v", err)
				}
			}
			fresh.Range(func(d, _ any) bool {
				if !s.store.Has(d.(ota.Digest)) {
					rt.Fatalf("%s was just uploaded and is gone", d)
				}
				return true
			})
			s.ahead.Add(int64(rapid.SampledFrom([]time.Duration{0, time.Minute, 59 * time.Minute, 3 * time.Hour}).Draw(rt, "pass")))
		}
		s.ahead.Add(int64(24 * time.Hour))
		said := s.collect(rt, true)
		did := s.collect(rt, false)
		if len(said.Removed) != len(did.Removed) || said.Bytes != did.Bytes {
			rt.Fatalf("said %d, did %d", len(said.Removed), len(did.Removed))
		}
		if did.Kept != len(s.refs) || did.InGrace != 0 {
			rt.Fatalf("%d kept of %d referred to", did.Kept, len(s.refs))
		}
	})
}

// TestReachable: what a reachable document names stays, through any number of
// documents, also chunk indexes; a slow upload that ends now is not old; and
// what a server cannot know after its start it does not collect.
func TestReachable(t *testing.T) {
	s := newShelf()
	put := func(content string) ota.Digest {
		t.Helper()
		d, err := s.upload([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer, index, patch, orphan, orphanIndex := put("layer"), put("chunk index"), put("patch"), put("orphan"), put("index of the orphan")
	inner := put(fmt.Sprintf(`{"layers":[{"digest":%q,"annotations":{"savings":"{\"patches\":[{\"digest\":\"%s\"}]}"}}]}`, layer, patch))
	root := put(fmt.Sprintf(` {"manifests":[{"digest":%q}]}`, inner))
	s.refs[root] = true
	var forgot []ota.Digest
	c := Collect{Roots: s.roots, Grace: 2 * time.Hour,
		Index: func(d ota.Digest) (ota.Digest, bool) {
			ix, ok := map[ota.Digest]ota.Digest{layer: index, orphan: orphanIndex}[d]
			return ix, ok
		},
		Forget: func(d ota.Digest) error { forgot = append(forgot, d); return nil },
	}
	if got, err := s.Collect(t.Context(), c); err != nil || len(got.Removed) != 0 || got.InGrace != 2 {
		t.Errorf("at once: %+v, %v", got, err)
	}
	s.ahead.Add(int64(3 * time.Hour))
	if !s.store.Has(orphan) { // somebody asks for it
		t.Fatal("orphan is gone")
	}
	got, err := s.Collect(t.Context(), c)
	if err != nil || len(got.Removed) != 1 || got.Removed[0].Digest != orphanIndex || got.InGrace != 1 || got.Kept != 6 {
		t.Errorf("after 3 hours: %+v, %v", got, err)
	}
	s.ahead.Add(int64(3 * time.Hour))
	if got, err := s.Collect(t.Context(), c); err != nil || len(got.Removed) != 1 || !slices.Equal(forgot, []ota.Digest{orphanIndex, orphan}) {
		t.Errorf("after 6 hours: %+v, %v, forgot %v", got, err, forgot)
	}
	for _, d := range []ota.Digest{root, inner, layer, patch, index} {
		if !s.store.Has(d) {
			t.Errorf("%s is gone", d.Short())
		}
	}
	c.Grace = time.Minute
	if _, err := s.Collect(t.Context(), c); !errors.Is(err, ErrGrace) {
		t.Errorf("short grace: %v", err)
	}
	// A new process does not know who asked before it.
	put("late orphan")
	s.ahead.Add(int64(3 * time.Hour))
	again := blob.NewStore(s.opts.Files)
	again.TrackUse(s.now)
	s.Server = New(Options{Files: s.opts.Files, Store: again, Now: s.now})
	c.Grace = LeastGrace
	if got, err := s.Collect(t.Context(), c); err != nil || len(got.Removed) != 0 || got.InGrace != 1 {
		t.Errorf("after a start: %+v, %v", got, err)
	}
	c.Roots = func(context.Context) ([]ota.Digest, error) { return nil, errors.New("no database") }
	s.ahead.Add(int64(3 * time.Hour))
	if _, err := s.Collect(t.Context(), c); err == nil || !s.store.Has(root) {
		t.Errorf("without roots: %v", err)
	}
}
