package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

const (
	maxGap = 2 * time.Second // of the application without an answer
	hold   = 4 * time.Second // how long a denial goes on after it was named
)

// denialAttacks can only be borne.
func denialAttacks() []Attack {
	return []Attack{
		{Name: "drop-request", Row: "drop-request", Class: "link-offline", Refuser: "the committed release needs no network; a link without an answer is ended within a minute", Denial: true, Slow: true,
			strike: func(ctx context.Context, s *scene) error {
				if err := s.bait(ctx); err != nil {
					return err
				}
				s.d.line.Hole()
				return nil
			}, lift: restore, jitter: func(s *scene) error { return spread(s.d.dialled(s.begun), 0, 10, 3*patience) }},
		{Name: "cut-line", Row: "drop-request", Class: "link-offline", Refuser: "the committed release needs no network", Denial: true,
			strike: func(ctx context.Context, s *scene) error {
				s.d.line.Cut()
				return s.bait(ctx)
			}, lift: restore, jitter: func(s *scene) error { return spread(s.d.dialled(s.begun), 5, 60, 2*linkBackoff+time.Second) }},
		{Name: "slow-retrieval", Row: "slow retrieval", Class: "download-waits", Refuser: "a transfer ends for lack of progress (1 KiB/s over 30 s)", Denial: true,
			device: func(o *deviceOptions) { o.patience = time.Second },
			strike: spoils(func(r *http.Request, size int64) *http.Response { return ranged(r, &drip{ctx: r.Context()}, size) }),
			jitter: func(s *scene) error { return spread(s.d.man.requests("/v2/", s.begun), 5, 20, 8*time.Second) }},
		{Name: "overload-503", Row: "DoS on repository", Class: "trust-stale", Refuser: "full jitter, doubled each time up to 2 minutes", Denial: true,
			strike: overload(http.StatusServiceUnavailable, "", "/tuf/", "/v2/"),
			jitter: func(s *scene) error {
				return spread(s.d.man.requests("mqtt/"+string(wire.UpGet), s.begun), 2, 5, 10*time.Second)
			}},
		{Name: "overload-429", Row: "DoS on repository", Class: "download-waits", Refuser: "full jitter over what Retry-After asks for, at most 10 minutes of it", Denial: true,
			strike: overload(http.StatusTooManyRequests, "0", "/v2/"),
			jitter: func(s *scene) error {
				return errors.Join(spread(s.d.man.requests("/v2/", s.begun), 5, 20, 8*time.Second), quick.measure(context.Background()))
			}},
		{Name: "flood-of-refused", Row: "DoS on repository", Class: "trust-refused", Refuser: "unknown keys are asked for once a minute, refusals told 20 times a minute", Denial: true,
			strike: flood, jitter: floodBounded},
	}
}

func restore(_ context.Context, s *scene) error {
	s.d.line.Restore()
	return nil
}

// overload answers all requests below the paths with a status.
func overload(status int, after string, paths ...string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		s.onlyHTTPS()
		s.d.man.setAnswer(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			if !under(r.URL.Path, paths) {
				return next.RoundTrip(r)
			}
			resp := reply(r, status, strings.NewReader("too much"), -1)
			if after != "" {
				resp.Header.Set("Retry-After", after)
			}
			return resp, nil
		})
		return s.bait(ctx)
	}
}

// drip gives a byte each 10 seconds.
type drip struct {
	ctx context.Context
	n   int
}

// Read implements io.Reader.
func (d *drip) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if d.n++; d.n == 1 {
		p[0] = 'x'
		return 1, nil
	}
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-d.ctx.Done():
		return 0, errors.Join(io.ErrUnexpectedEOF, d.ctx.Err())
	case <-t.C:
		p[0] = 'x'
		return 1, nil
	}
}

// floods is how many messages a flood has.
const floods = 2000

// flood says what no known key has signed, many times.
func flood(ctx context.Context, s *scene) error {
	by, err := stranger()
	if err != nil {
		return err
	}
	for i := range floods {
		raw, err := sealed(by, wire.AADDesired, s.desired(bait, func(d *wire.Desired) { d.Generation.Counter += uint64(i) }))
		if err != nil {
			return err
		}
		s.d.man.say(wire.DownDesired, raw)
		if i%20 == 0 {
			pause(ctx, 10*time.Millisecond)
		}
	}
	return ctx.Err()
}

// floodBounded counts what a flood made the device do.
func floodBounded(s *scene) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	asked := len(s.d.man.requests("/tuf/timestamp.json", s.begun))
	events, err := s.fresh(ctx)
	told := 0
	for _, e := range events {
		if e.GetKind() == "refused" {
			told++
		}
	}
	if err == nil && (asked > 2 || told == 0 || told > 40) {
		err = fmt.Errorf("%d messages made %d refreshes of the metadata and %d events", floods, asked, told)
	}
	return err
}

// errFew is returned by spread while there is too little to judge.
var errFew = errors.New("too few tries")

// spread checks tries: at least so many, at most so many a second, none after a
// gap longer than most, and not in step.
func spread(tries []time.Time, least, aSecond int, most time.Duration) error {
	if len(tries) < least {
		return fmt.Errorf("%w: %d, want at least %d", errFew, len(tries), least)
	}
	if len(tries) < 3 {
		return nil
	}
	var gaps []time.Duration
	for i := range tries[1:] {
		gaps = append(gaps, tries[i+1].Sub(tries[i]))
	}
	span := tries[len(tries)-1].Sub(tries[0]) + time.Second
	if rate := float64(len(tries)) / span.Seconds(); rate > float64(aSecond) {
		return fmt.Errorf("%.1f tries a second, want at most %d", rate, aSecond)
	}
	if g := slices.Max(gaps); g > most {
		return fmt.Errorf("%s between two tries, want at most %s", g, most)
	}
	if slices.Max(gaps)-slices.Min(gaps) < time.Millisecond {
		return fmt.Errorf("tries come in step, every %s", gaps[0])
	}
	return nil
}

// bear carries out an attack that can only be borne, and measures it.
func (s *scene) bear(ctx context.Context, r *Result) error {
	s.d.app.mark()
	if err := s.a.strike(ctx, s); err != nil {
		return fmt.Errorf("carry out the attack: %w", err)
	}
	limit := patience
	if s.a.Slow {
		limit = 4 * patience
	}
	named := wait(ctx, limit, func() (bool, error) { return s.holds(ctx) })
	pause(ctx, hold)
	counts, gap, fault := s.d.app.seen()
	var err error
	switch {
	case fault != nil:
		err = fmt.Errorf("inference failed: %w", fault)
	case counts[running] == 0 || len(counts) > 1:
		err = fmt.Errorf("answers by model: %v, only %d should answer", counts, running)
	case gap > maxGap:
		err = fmt.Errorf("no answer for %s", gap)
	}
	r.add(Unharmed, err)
	if named != nil {
		named = fmt.Errorf("no condition %s: %w; there are %+v", s.a.Class, named, s.d.status().Conditions)
	}
	r.add(Condition, named)
	var jitter error // of the time of the attack
	if err := wait(ctx, patience/2, func() (bool, error) {
		jitter = s.a.jitter(s)
		return !errors.Is(jitter, errFew), nil
	}); err != nil {
		jitter = errors.Join(jitter, err)
	}
	r.add(Recovers, s.recover(ctx))
	r.add(JitterBounded, jitter)
	return nil
}

// holds reports whether the condition is known: to the device, and to the
// control plane where the link to it stands.
func (s *scene) holds(ctx context.Context) (bool, error) {
	if s.d.condition(s.a.Class) == "" {
		return false, nil
	}
	if s.a.Class == "link-offline" {
		return true, nil
	}
	v, err := s.w.device(ctx, s.d.id)
	if err != nil {
		return false, err
	}
	for _, c := range v.GetConditions() {
		if c.GetName() == s.a.Class {
			return true, nil
		}
	}
	return false, nil
}
