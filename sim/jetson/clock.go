package jetson

import (
	"math/rand/v2"
	"time"
)

// Clock says how a board's wall clock starts. The zero value is a clock that
// is right from the start.
type Clock struct {
	// Epoch starts the clock in 1970, as a developer kit without an RTC
	// battery does; every power cycle does so again.
	Epoch bool
	// Offset is added to the true time otherwise.
	Offset time.Duration
	// SyncAfter is when NTP sets the clock right, counted from boot; zero
	// means one minute, negative never.
	SyncAfter time.Duration
	// DriftPPM is the error of the oscillator; 0 draws up to ±20 from the seed.
	DriftPPM float64
}

// clockState is the clock in motion. wall is what the board believes.
type clockState struct {
	cfg     Clock
	drift   float64
	begun   bool
	wall    time.Time
	running time.Duration // since the last start
	synced  bool
}

func (c *clockState) start(cfg Clock, rng *rand.Rand) {
	c.cfg = cfg
	c.drift = cfg.DriftPPM
	if c.drift == 0 {
		c.drift = 40*rng.Float64() - 20
	}
	if c.cfg.SyncAfter == 0 {
		c.cfg.SyncAfter = time.Minute
	}
	c.synced = !cfg.Epoch && cfg.Offset == 0
}

// reboot starts the clock again at the true time now.
func (c *clockState) reboot(now time.Time) {
	c.running = 0
	c.begun = true
	if c.cfg.Epoch {
		c.synced = false
		c.wall = time.Unix(0, 0).UTC()
		return
	}
	c.wall = now.Add(c.cfg.Offset)
	c.synced = c.cfg.Offset == 0
}

func (c *clockState) step(dt time.Duration, now time.Time) {
	if !c.begun {
		c.reboot(now.Add(-dt))
	}
	c.running += dt
	if !c.synced && c.cfg.SyncAfter > 0 && c.running >= c.cfg.SyncAfter {
		c.synced = true
	}
	if c.synced {
		c.wall = now // NTP disciplines it from here on
		return
	}
	c.wall = c.wall.Add(dt + time.Duration(float64(dt)*c.drift/1e6))
}

// TrueNow is the time of the world outside.
func (b *Board) TrueNow() time.Time { return b.start.Add(b.age) }

// Now is what the board's wall clock shows.
func (b *Board) Now() time.Time {
	if !b.clock.begun {
		b.clock.reboot(b.TrueNow())
	}
	return b.clock.wall
}

// ClockSynced reports that NTP has set the clock.
func (b *Board) ClockSynced() bool { return b.clock.synced }

// ResetClock throws the wall clock back to 1970, as a rewinding RTC driver
// does; NTP mends it after syncAfter, never if that is negative.
func (b *Board) ResetClock(syncAfter time.Duration) {
	b.clock.begun, b.clock.synced, b.clock.running = true, false, 0
	b.clock.wall = time.Unix(0, 0).UTC()
	b.clock.cfg.SyncAfter = syncAfter
}
