package power

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Conditions is where the manager says what holds.
type Conditions interface {
	Update(on bool, name string, s health.Severity, message string)
}

// Config of a Manager. All but Every, Limit and Changed are required.
type Config struct {
	Board      Board
	Files      slot.Files
	Conditions Conditions
	Logger     *slog.Logger
	// Every is the time between two looks; 0 means 15 s.
	Every time.Duration
	// Limit bounds a wait for headroom; 0 means 10 minutes.
	Limit time.Duration
	// Busy says why neither mode nor machine may be changed now, empty when they
	// may: an update is put to work. Held says why the machine may not be
	// restarted: outside of the window, or held off.
	Busy func() string
	Held func() string
	// BootID tells one start of the machine from another.
	BootID func() uint64
	// Changed is told that State says something else than before.
	Changed func()
}

const (
	fileName   = "power.json"
	keepFor    = rateOver + time.Minute
	headroomIn = 5 * time.Second // between two looks while something waits
)

// restarts is what is remembered of machines restarted for a mode.
type restarts struct {
	Mode string `json:"mode,omitempty"` // of the last one
	Boot uint64 `json:"boot,omitempty"` // in which it was asked for
}

// Manager watches one board. Its methods are safe for concurrent use.
type Manager struct {
	cfg  Config
	wake chan struct{}
	look sync.Mutex // one look at a time

	mu      sync.Mutex // guards what follows
	wish    wire.PowerWish
	samples []sample
	state   *wire.Power
	needs   bool // the wanted mode needs a restart
	done    restarts
	told    string
}

// New returns a manager; it starts nothing.
func New(c Config) (*Manager, error) {
	if c.Every <= 0 {
		c.Every = 15 * time.Second
	}
	if c.Limit <= 0 {
		c.Limit = 10 * time.Minute
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	m := &Manager{cfg: c, wake: make(chan struct{}, 1)}
	if _, err := durable.Read(c.Files, fileName, &m.done); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrDamaged) {
		return nil, fmt.Errorf("read %s: %w", fileName, err)
	}
	return m, nil
}

// Use makes w the wish, nil for none.
func (m *Manager) Use(w *wire.PowerWish) {
	m.mu.Lock()
	old := m.wish
	m.wish = wire.PowerWish{}
	if w != nil {
		m.wish = *w
	}
	changed := m.wish != old
	m.mu.Unlock()
	if changed {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// State is how the board runs, nil before the first look.
func (m *Manager) State() *wire.Power {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Run looks at the board every so often, and brings it to what is wished.
func (m *Manager) Run(ctx context.Context) error {
	for {
		if err := m.Look(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Logger.Warn("look at the board's power", "error", err)
		}
		timer := time.NewTimer(m.cfg.Every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-m.wake:
			timer.Stop()
		}
	}
}

// Look reads the board once, says what it finds, and sets what is not as wished.
func (m *Manager) Look(ctx context.Context) error {
	m.look.Lock()
	defer m.look.Unlock()
	v, err := m.read(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	wish := m.wish
	m.mu.Unlock()
	if m.cfg.Busy() == "" {
		again := m.mode(ctx, wish, v)
		again = m.rest(ctx, wish, v) || again
		if again { // what was set is read back
			if v, err = m.read(ctx); err != nil {
				return err
			}
		}
	}
	m.note(wish, v)
	return nil
}

// read takes a sample and judges.
func (m *Manager) read(ctx context.Context) (view, error) {
	r, err := m.cfg.Board.Read(ctx)
	if err != nil {
		return view{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := sample{at: time.Now(), Reading: r}
	m.samples = append(m.samples, now)
	old := slices.IndexFunc(m.samples, func(s sample) bool { return now.at.Sub(s.at) <= keepFor })
	m.samples = slices.Delete(m.samples, 0, old)
	return judge(m.samples), nil
}

// mode brings the board to the wanted power mode; it reports whether it set one.
func (m *Manager) mode(ctx context.Context, wish wire.PowerWish, v view) bool {
	m.setNeeds(false)
	if wish.Mode == "" || wish.Mode == v.Mode {
		m.refused("")
		return false
	}
	if len(v.Modes) > 0 && !slices.Contains(v.Modes, wish.Mode) {
		m.refused(fmt.Sprintf("power mode %s: %v; it has %s", wish.Mode, ErrUnknown, strings.Join(v.Modes, ", ")))
		return false
	}
	err := m.cfg.Board.SetMode(ctx, wish.Mode, false)
	if errors.Is(err, ErrNeedsReboot) {
		m.setNeeds(true)
		m.refused("")
		m.restart(ctx, wish, v)
		return false
	}
	if err != nil {
		m.refused(fmt.Sprintf("set power mode %s: %v", wish.Mode, err))
		return false
	}
	m.cfg.Logger.Info("power mode set", "mode", wish.Mode, "before", v.Mode)
	m.refused("")
	return true
}

func (m *Manager) setNeeds(on bool) {
	m.mu.Lock()
	m.needs = on
	m.mu.Unlock()
}

func (m *Manager) refused(text string) {
	m.cfg.Conditions.Update(text != "", health.PowerRefused, health.Warning, text)
}

// restart lets the machine restart for a mode, where that is allowed, and once.
func (m *Manager) restart(ctx context.Context, wish wire.PowerWish, v view) {
	why := ""
	m.mu.Lock()
	tried := m.done.Mode == wish.Mode
	again := m.done.Boot == m.cfg.BootID()
	m.mu.Unlock()
	switch held := m.cfg.Held(); {
	case tried && again:
		why = "the machine is about to restart for it"
	case tried:
		m.refused(fmt.Sprintf("power mode %s: the machine was restarted for it and is in %s all the same; it is not restarted again", wish.Mode, v.Mode))
		why = "it was restarted for it once"
	case !wish.Reboot:
		why = "restart it, or allow it with: skein policy set power-reboot=yes"
	case held != "":
		why = held
	}
	text := fmt.Sprintf("power mode %s comes with a restart of the machine, which is in %s", wish.Mode, v.Mode)
	if why != "" {
		m.cfg.Conditions.Update(true, health.PowerNeedsReboot, health.Warning, text+": "+why)
		return
	}
	next := restarts{Mode: wish.Mode, Boot: m.cfg.BootID()}
	if err := durable.Write(m.cfg.Files, fileName, next); err != nil { // else it could restart for ever
		m.refused("remember the restart for power mode " + wish.Mode + ": " + err.Error())
		return
	}
	m.mu.Lock()
	m.done = next
	m.mu.Unlock()
	m.cfg.Conditions.Update(true, health.PowerNeedsReboot, health.Warning, text+": it restarts now")
	m.cfg.Logger.Warn("the machine restarts for its power mode", "mode", wish.Mode, "before", v.Mode)
	if err := m.cfg.Board.SetMode(ctx, wish.Mode, true); err != nil && ctx.Err() == nil {
		m.refused(fmt.Sprintf("restart for power mode %s: %v", wish.Mode, err))
	}
}

// rest brings clocks and fan to what is wished; it reports whether it set any.
func (m *Manager) rest(ctx context.Context, wish wire.PowerWish, v view) (set bool) {
	var refused []string
	try := func(what, value string, err error) {
		if err != nil {
			refused = append(refused, fmt.Sprintf("set %s %s: %v", what, value, err))
			return
		}
		set = true
		m.cfg.Logger.Info(what+" set", "value", value)
	}
	if wish.Clocks != 0 && v.Clocks != 0 && wish.Clocks != v.Clocks {
		try("clocks", wish.Clocks.String(), m.cfg.Board.SetClocks(ctx, wish.Clocks))
	}
	if wish.Fan != "" && wish.Fan != v.Fan {
		try("fan profile", wish.Fan, m.cfg.Board.SetFan(ctx, wish.Fan))
	}
	m.cfg.Conditions.Update(len(refused) > 0, health.ClocksRefused, health.Warning, strings.Join(refused, "; "))
	return set
}

// note keeps the state and the conditions that follow from it.
func (m *Manager) note(wish wire.PowerWish, v view) {
	m.mu.Lock()
	p := v.Power
	p.Wanted, p.NeedsReboot = wish.Mode, m.needs
	m.state = &p
	key := fmt.Sprint(p.Mode, p.Wanted, p.NeedsReboot, p.Clocks, p.Fan, len(p.Throttle))
	changed := key != m.told
	m.told = key
	needs := m.needs
	m.mu.Unlock()
	if !needs {
		m.cfg.Conditions.Update(false, health.PowerNeedsReboot, health.Warning, "")
	}
	for _, c := range []struct{ reason, condition string }{{"heat", health.ThrottledByHeat}, {"over-current", health.OverCurrent}, {"under-voltage", health.UnderVoltage}} {
		i := slices.IndexFunc(p.Throttle, func(t wire.Throttle) bool { return t.Name == c.reason })
		text := ""
		if i >= 0 {
			text = v.advice[i]
		}
		m.cfg.Conditions.Update(i >= 0, c.condition, health.Warning, text)
	}
	if changed {
		m.cfg.Changed()
	}
}

// Headroom returns when heavy work may begin: at once on a cool board, else when
// it has cooled down or the limit has passed, and note says what was waited for.
// A board that cannot be read is waited for by nobody.
func (m *Manager) Headroom(ctx context.Context, work string) (note string, err error) {
	began := time.Now()
	waited := ""
	defer func() {
		if waited != "" {
			m.cfg.Conditions.Update(false, health.WaitsForHeadroom, health.Info, "")
		}
	}()
	for {
		v, err := m.read(ctx)
		why := ""
		if err == nil {
			why = v.busy()
		}
		passed := time.Since(began)
		switch {
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case why == "" && waited == "":
			return "", nil
		case why == "":
			return fmt.Sprintf("waited %s for headroom: %s", passed.Round(time.Second), waited), nil
		case passed >= m.cfg.Limit:
			return fmt.Sprintf("began without headroom after %s: %s", passed.Round(time.Second), why), nil
		}
		if waited == "" {
			m.cfg.Conditions.Update(true, health.WaitsForHeadroom, health.Info,
				fmt.Sprintf("%s waits, at most %s, for the board to have headroom: %s", work, m.cfg.Limit, why))
		}
		waited = why
		timer := time.NewTimer(min(headroomIn, m.cfg.Limit-passed))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
