// Package attack is the attack suite: every way to harm a device through its
// updates that is known to the literature (Uptane, TUF) and some that are not,
// carried out against the real agent that is linked to a real control plane,
// with the attacker on the line, in the repository with stolen keys, or on the
// device's disk. It owns the list of attacks and what is measured of each, all
// of it from the outside: what the control plane knows, what lies on the disk,
// what inference answers, and whether the next honest update works.
//
// A verdict is never assumed: what was not seen is short. The command
// skein-sim attack and tests import it.
package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// The verdicts on an attack that should be refused, and on one that can only be
// borne.
const (
	Refused        = "refused"            // reported, and not adopted
	NothingApplied = "nothing-applied"    // disk and answers are what they were
	Named          = "named"              // the control plane knows the class of the attack
	Recovers       = "recovers"           // the next honest update works
	Unharmed       = "inference-unharmed" // the release that ran answers all the time
	Condition      = "condition-named"    // a condition says what is wrong
	JitterBounded  = "jitter-bounded"     // tries are spread, and neither too many nor too far apart
)

// Attack is one row of the suite.
type Attack struct {
	Name string
	// Row is the kind of attack in the list of Uptane and TUF.
	Row string
	// Class is the name in the device's report, or of the condition.
	Class string
	// Refuser says what refuses it, for the table in the docs.
	Refuser string
	// Denial is an attack that cannot be refused, only borne.
	Denial bool
	// Slow takes more than half a minute.
	Slow bool
	// Heals is an attack in spite of which the honest release is installed, by
	// another way.
	Heals bool

	place    place
	device   func(*deviceOptions)
	strike   func(context.Context, *scene) error
	lift     func(context.Context, *scene) error // nil: the attacker just goes
	mayAlter []string                            // files that the attack may change by right: what a stolen key has signed
	// named looks for Class elsewhere than in events, and where says where.
	named  func(context.Context, *scene) (bool, error)
	where  string
	jitter func(*scene) error
}

// place says which control plane an attack needs.
type place int

const (
	shared    place = iota // one for all that only touch their own device
	own                    // one for itself
	threshold              // likewise, and its targets need two keys of two
	autoPlace              // likewise, and releases are made with no hand, within a policy
)

// Verdict is one measurement.
type Verdict struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"` // when it is short
}

// Result is what became of one attack.
type Result struct {
	Name     string    `json:"name"`
	Row      string    `json:"row"`
	Class    string    `json:"class"`
	Verdicts []Verdict `json:"verdicts"`
	Seconds  float64   `json:"seconds"`
}

// OK reports whether no verdict is short.
func (r Result) OK() bool {
	return len(r.Verdicts) > 0 && !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return !v.OK })
}

// String is the line of the suite.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "attack %s", r.Name)
	for _, v := range r.Verdicts {
		word := "short"
		if v.OK {
			word = "ok"
		}
		fmt.Fprintf(&b, " %s=%s", v.Name, word)
	}
	return b.String()
}

// Short lists why verdicts are short, one a line.
func (r Result) Short() string {
	var out []string
	for _, v := range r.Verdicts {
		if !v.OK {
			out = append(out, v.Name+": "+v.Why)
		}
	}
	return strings.Join(out, "\n")
}

// MarshalJSON adds whether all is well.
func (r Result) MarshalJSON() ([]byte, error) {
	type plain Result
	return json.Marshal(struct {
		plain
		OK bool `json:"ok"`
	}{plain(r), r.OK()})
}

// names are the verdicts on an attack, in order.
func (a *Attack) names() []string {
	if a.Denial {
		return []string{Unharmed, Condition, Recovers, JitterBounded}
	}
	return []string{Refused, NothingApplied, Named, Recovers}
}

// ErrUnknown is returned for a name that is no attack.
var ErrUnknown = errors.New("no such attack")

// List returns all attacks, in the order of the table.
func List() []Attack {
	return slices.Concat(metadataAttacks(), keyAttacks(), autoAttacks(), directorAttacks(), contentAttacks(), peerAttacks(), releaseAttacks(), patchAttacks(), diskAttacks(), reportAttacks(), denialAttacks())
}

// find returns one attack.
func find(name string) (*Attack, error) {
	for _, a := range List() {
		if a.Name == name {
			return &a, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
}

// Suite runs attacks; its control planes start when the first attack needs them.
type Suite struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	worlds map[place]*started
	count  int
}

type started struct {
	once sync.Once
	w    *world
	err  error
}

// New returns a suite that keeps its files in dir.
func New(dir string, logger *slog.Logger) *Suite {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Suite{dir: dir, log: logger, worlds: map[place]*started{}}
}

// Close ends the control planes.
func (s *Suite) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.worlds {
		if st.w != nil {
			errs = append(errs, st.w.close())
		}
	}
	clear(s.worlds)
	return errors.Join(errs...)
}

// next numbers folders.
func (s *Suite) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	return s.count
}

// world returns the control plane for a place; done ends it if it is of one
// attack alone.
func (s *Suite) world(ctx context.Context, p place) (w *world, done func() error, err error) {
	keep := func() error { return nil }
	if p != shared {
		w, err := newWorld(ctx, s.dir, s.next(), p, s.log)
		if err != nil {
			return nil, keep, err
		}
		return w, w.close, nil
	}
	s.mu.Lock()
	st := s.worlds[p]
	if st == nil {
		st = &started{}
		s.worlds[p] = st
	}
	s.mu.Unlock()
	st.once.Do(func() { st.w, st.err = newWorld(context.WithoutCancel(ctx), s.dir, s.next(), p, s.log) })
	return st.w, keep, st.err
}

// Run carries out one attack by name.
func (s *Suite) Run(ctx context.Context, name string) (Result, error) {
	a, err := find(name)
	if err != nil {
		return Result{}, err
	}
	return s.run(ctx, a), nil
}

// run carries out an attack. What keeps it from being carried out makes every
// verdict that is not in yet short.
func (s *Suite) run(ctx context.Context, a *Attack) Result {
	began := time.Now()
	r := Result{Name: a.Name, Row: a.Row, Class: a.Class}
	err := s.carryOut(ctx, a, &r)
	for _, name := range a.names() {
		if !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.Name == name }) {
			if err == nil {
				err = errors.New("not measured")
			}
			r.Verdicts = append(r.Verdicts, Verdict{Name: name, Why: err.Error()})
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return r
}

func (s *Suite) carryOut(ctx context.Context, a *Attack, r *Result) (err error) {
	w, done, err := s.world(ctx, a.place)
	if err != nil {
		return fmt.Errorf("start a control plane: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	sc, err := newScene(ctx, s, w, a)
	if err != nil {
		return fmt.Errorf("set the scene: %w", err)
	}
	defer func() { err = errors.Join(err, sc.close()) }()
	if a.Denial {
		return sc.bear(ctx, r)
	}
	return sc.refuse(ctx, r)
}

// RunAll carries out attacks, so many at a time, and calls report with each
// result in the order of names. It returns all of them.
func (s *Suite) RunAll(ctx context.Context, names []string, parallel int, report func(Result)) ([]Result, error) {
	for _, n := range names {
		if _, err := find(n); err != nil {
			return nil, err
		}
	}
	slots := make(chan struct{}, max(1, parallel))
	results := make([]chan Result, len(names))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range names {
		results[i] = make(chan Result, 1)
	}
	wg.Go(func() {
		for i, n := range names {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				r, err := s.Run(ctx, n)
				if err != nil {
					r = Result{Name: n, Verdicts: []Verdict{{Name: Refused, Why: err.Error()}}}
				}
				results[i] <- r
			})
		}
	})
	out := make([]Result, 0, len(names))
	for i := range names {
		r := <-results[i]
		out = append(out, r)
		report(r)
	}
	return out, ctx.Err()
}
