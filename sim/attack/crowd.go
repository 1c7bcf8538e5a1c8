package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// crowd is many fetchers, each the agent's own code, that ask a repository which
// is down at first and can then serve only so many at once.
type crowd struct {
	size  int
	down  time.Duration
	base  time.Duration // first pause
	most  time.Duration // longest pause
	slice time.Duration // in which requests are counted
	room  int           // answers in a slice
}

// quick is a crowd whose times are a twentieth of the agent's: with shorter ones
// a busy machine gathers the requests, not the fetchers.
var quick = crowd{size: 500, down: 5 * time.Second, base: 50 * time.Millisecond, most: 6 * time.Second, slice: 500 * time.Millisecond, room: 120}

// counter is the repository.
type counter struct {
	crowd
	content []byte
	opens   time.Time

	mu     sync.Mutex // guards what follows
	slices map[int64]int
}

// RoundTrip implements http.RoundTripper.
func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	now := time.Now()
	c.mu.Lock()
	at := int64(now.Sub(c.opens) / c.slice)
	c.slices[at]++
	over := c.slices[at] > c.room
	c.mu.Unlock()
	switch {
	case now.Before(c.opens):
		return reply(r, http.StatusServiceUnavailable, bytes.NewReader(nil), 0), nil
	case over:
		return reply(r, http.StatusTooManyRequests, bytes.NewReader(nil), 0), nil
	}
	return serve(r, c.content), nil
}

// measure tells whether the requests of many are spread, and whether all are
// served soon after the repository is back.
func (c crowd) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.down+20*c.most)
	defer cancel()
	content := []byte("skein")
	repo := &counter{crowd: c, content: content, opens: time.Now().Add(c.down), slices: map[int64]int{}}
	desc := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: ota.DigestOf(content), Size: int64(len(content))}
	client := &http.Client{Transport: repo}
	errs := make([]error, c.size)
	var wg sync.WaitGroup
	for i := range c.size {
		wg.Go(func() {
			f := &fetch.Fetcher{Store: blob.NewStore(slot.NewMem()), Source: fetch.HTTP(client, "http://repository"),
				Attempts: 1000, BaseWait: c.base, MaxWait: c.most}
			errs[i] = f.Fetch(ctx, desc)
		})
	}
	wg.Wait()
	took := time.Since(repo.opens)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the crowd was not served: %w", err)
	}
	return repo.judge(took)
}

// judge looks at the slices after the first wave: everybody's first request
// comes at once, and so may the second.
func (c *counter) judge(took time.Duration) error {
	if most := 4 * c.most; took > most {
		return fmt.Errorf("the crowd was served %s after the repository came back, want at most %s", took, most)
	}
	peak := 0
	for at, n := range c.slices {
		if at >= 0 {
			peak = max(peak, n)
		}
	}
	if most := c.size / 2; peak > most {
		return fmt.Errorf("%d of %d asked within %s of each other after the outage, want at most %d: %v", peak, c.size, c.slice, most, c.histogram())
	}
	return nil
}

func (c *counter) histogram() (out []int) {
	var keys []int64
	for k := range c.slices {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		out = append(out, c.slices[k])
	}
	return out
}
