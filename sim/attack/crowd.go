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

// A crowd of fetchers, each the agent's own code, asks a repository that is
// down at first and can then serve only so many at once. Times are a hundredth
// of the agent's.
const (
	crowdSize  = 500
	crowdDown  = 1500 * time.Millisecond
	crowdMost  = 1200 * time.Millisecond // longest pause
	crowdSlice = 100 * time.Millisecond
	crowdRoom  = 120 // answers in a slice
)

// counter is the repository.
type counter struct {
	content []byte
	opens   time.Time

	mu     sync.Mutex // guards what follows
	slices map[int64]int
}

// RoundTrip implements http.RoundTripper.
func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	now := time.Now()
	c.mu.Lock()
	at := int64(now.Sub(c.opens) / crowdSlice)
	c.slices[at]++
	over := c.slices[at] > crowdRoom
	c.mu.Unlock()
	switch {
	case now.Before(c.opens):
		return reply(r, http.StatusServiceUnavailable, bytes.NewReader(nil), 0), nil
	case over:
		return reply(r, http.StatusTooManyRequests, bytes.NewReader(nil), 0), nil
	}
	return serve(r, c.content), nil
}

// crowd measures that requests of many are spread, and that all are served
// soon after the repository is back.
func crowd() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	content := bytes.Repeat([]byte("skein"), 200)
	repo := &counter{content: content, opens: time.Now().Add(crowdDown), slices: map[int64]int{}}
	desc := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: ota.DigestOf(content), Size: int64(len(content))}
	client := &http.Client{Transport: repo}
	errs := make([]error, crowdSize)
	var wg sync.WaitGroup
	for i := range crowdSize {
		wg.Go(func() {
			f := &fetch.Fetcher{Store: blob.NewStore(slot.NewMem()), Source: fetch.HTTP(client, "http://repository"),
				Attempts: 1000, BaseWait: 10 * time.Millisecond, MaxWait: crowdMost}
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
	if most := 4 * crowdMost; took > most {
		return fmt.Errorf("the crowd was served %s after the repository came back, want at most %s", took, most)
	}
	peak := 0
	for at, n := range c.slices {
		if at >= 0 {
			peak = max(peak, n)
		}
	}
	if most := crowdSize / 2; peak > most {
		return fmt.Errorf("%d of %d asked within %s of each other after the outage, want at most %d: %v", peak, crowdSize, crowdSlice, most, c.histogram())
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
