package power

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Run runs a command of the host with text on its standard input and returns
// all that it printed.
type Run func(ctx context.Context, stdin, name string, args ...string) ([]byte, error)

// Tools is a Board by the vendor's tools (nvpmodel, jetson_clocks, nvfancontrol)
// and the kernel's files below Root.
type Tools struct {
	Root string
	Run  Run
	// Nvpmodel and JetsonClocks are the commands, empty for those names.
	Nvpmodel, JetsonClocks string
	// Restart restarts the machine.
	Restart func(ctx context.Context) error

	mu    sync.Mutex // guards what follows
	fanAt time.Time  // when fanIs was asked for
	fanIs string
}

// Present reports whether the root is of a board with power modes.
func (t *Tools) Present() bool {
	_, err := os.Stat(t.path("etc/nvpmodel.conf"))
	return err == nil
}

func (t *Tools) path(parts ...string) string {
	return filepath.Join(append([]string{t.Root}, parts...)...)
}

func (t *Tools) text(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.Trim(string(raw), "\x00 \n\t")
}

func (t *Tools) number(path string) (int64, bool) {
	n, err := strconv.ParseInt(t.text(path), 10, 64)
	return n, err == nil
}

// Conf is what /etc/nvpmodel.conf says of modes. Gaps between ids are legal.
type Conf struct {
	Modes   []Mode // in the order of the file
	Default int    // -1 when it names none
}

// Mode is one power mode; its id means nothing on other modules.
type Mode struct {
	ID   int
	Name string
}

var (
	modelRE   = regexp.MustCompile(`<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]+)\s*>`)
	defaultRE = regexp.MustCompile(`<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>`)
	statusRE  = regexp.MustCompile(`^pmode:(\d{1,4})`)
	queryRE   = regexp.MustCompile(`NV Power Mode(?:\[\d+\])?:\s*(\S+)`)
	fanModeRE = regexp.MustCompile(`NV Fan Mode:\s*(\S+)`)
	profileRE = regexp.MustCompile(`(?m)^(\s*FAN_DEFAULT_PROFILE\s+)(\S+)`)
	activeRE  = regexp.MustCompile(`FAN_PROFILE:(\S+)`)
	haveRE    = regexp.MustCompile(`(?m)^\s*FAN_PROFILE\s+(\S+)\s*\{?`)
)

// ParseConf reads the configuration of nvpmodel; lines of comments do not count.
func ParseConf(text string) Conf {
	c := Conf{Default: -1}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		if g := modelRE.FindStringSubmatch(line); g != nil {
			id, err := strconv.Atoi(g[1])
			if err == nil && !slices.ContainsFunc(c.Modes, func(m Mode) bool { return m.ID == id || m.Name == g[2] }) {
				c.Modes = append(c.Modes, Mode{id, g[2]})
			}
		}
		if g := defaultRE.FindStringSubmatch(line); g != nil {
			if id, err := strconv.Atoi(g[1]); err == nil {
				c.Default = id
			}
		}
	}
	return c
}

// Name returns the name of an id, empty for one that the file does not list.
func (c Conf) Name(id int) string {
	i := slices.IndexFunc(c.Modes, func(m Mode) bool { return m.ID == id })
	if i < 0 {
		return ""
	}
	return c.Modes[i].Name
}

// ID returns the id of a name.
func (c Conf) ID(name string) (int, bool) {
	i := slices.IndexFunc(c.Modes, func(m Mode) bool { return m.Name == name })
	if i < 0 {
		return 0, false
	}
	return c.Modes[i].ID, true
}

// Query is what nvpmodel -q says.
type Query struct {
	Name string
	ID   int    // -1 when it printed none
	Fan  string // of R32
}

// ParseQuery finds them between whatever else nvpmodel prints: the name, and the
// number on the next line that is one.
func ParseQuery(text string) (Query, error) {
	q := Query{ID: -1}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if g := fanModeRE.FindStringSubmatch(line); g != nil {
			q.Fan = g[1]
		}
		if g := queryRE.FindStringSubmatch(line); g != nil {
			q.Name = g[1]
			continue
		}
		if q.Name != "" && q.ID < 0 {
			if n, err := strconv.Atoi(line); err == nil {
				q.ID = n
			}
		}
	}
	if q.Name == "" {
		return q, fmt.Errorf("nvpmodel -q names no power mode: %.200q", text)
	}
	return q, nil
}

func (t *Tools) conf() Conf { return ParseConf(t.text(t.path("etc/nvpmodel.conf"))) }

func (t *Tools) nvpmodel() string {
	if t.Nvpmodel != "" {
		return t.Nvpmodel
	}
	return "nvpmodel"
}

// query asks nvpmodel, and the status file where it does not answer.
func (t *Tools) query(ctx context.Context, c Conf) (Query, error) {
	out, err := t.Run(ctx, "", t.nvpmodel(), "-q")
	if err == nil {
		q, perr := ParseQuery(string(out))
		if perr == nil {
			return q, nil
		}
		err = perr
	}
	if q, ok := t.status(c); ok {
		return q, nil
	}
	return Query{ID: -1}, err
}

// Read implements Board.
func (t *Tools) Read(ctx context.Context) (Reading, error) {
	c := t.conf()
	r := Reading{Clocks: t.clocks(), Zones: t.zones(), Coolers: t.coolers(), OverCurrent: t.overCurrent(), Rails: t.rails()}
	for _, m := range c.Modes {
		r.Modes = append(r.Modes, m.Name)
	}
	// The file costs no process; what was set is verified by the tool's word.
	q, ok := t.status(c)
	if !ok {
		var err error
		if q, err = t.query(ctx, c); err != nil {
			q = Query{}
		}
	}
	r.Mode, r.Fan = q.Name, q.Fan
	if fan := t.fan(ctx); fan != "" {
		r.Fan = fan
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, nil
}

// status is what nvpmodel left of its last change.
func (t *Tools) status(c Conf) (Query, bool) {
	g := statusRE.FindStringSubmatch(t.text(t.path("var/lib/nvpmodel/status")))
	if g == nil {
		return Query{}, false
	}
	id, err := strconv.Atoi(g[1])
	if err != nil || c.Name(id) == "" {
		return Query{}, false
	}
	return Query{Name: c.Name(id), ID: id}, true
}

// SetMode implements Board. nvpmodel asks before it restarts the machine, and
// changes nothing when the answer is not YES.
func (t *Tools) SetMode(ctx context.Context, name string, restart bool) error {
	c := t.conf()
	id, ok := c.ID(name)
	if !ok {
		return fmt.Errorf("power mode %s: %w", name, ErrUnknown)
	}
	answer := "no\n"
	if restart {
		answer = "YES\n"
	}
	out, err := t.Run(ctx, answer, t.nvpmodel(), "-m", strconv.Itoa(id))
	asked := bytes.Contains(bytes.ToLower(out), []byte("reboot"))
	if !asked && (err != nil || bytes.Contains(out, []byte("NVPM ERROR"))) {
		return errors.Join(fmt.Errorf("nvpmodel -m %d (%s): %s", id, name, firstLine(out)), err)
	}
	if asked && restart && t.Restart != nil {
		return t.Restart(ctx) // newer tools restart the machine by themselves
	}
	q, err := t.query(ctx, c)
	switch {
	case err != nil:
		return fmt.Errorf("read power mode %s back: %w", name, err)
	case q.Name == name:
		return nil
	case asked:
		return fmt.Errorf("%s: %w", name, ErrNeedsReboot)
	}
	return fmt.Errorf("set power mode %s: the board says %s after it", name, q.Name)
}

func firstLine(out []byte) string {
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "NVPM ERROR") {
			return line
		}
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// clockStore is where jetson_clocks keeps what was before it locked them.
const clockStore = "var/lib/skein-agent/jetson_clocks.conf"

// SetClocks implements Board. What jetson_clocks does not survive a restart, so
// it is set again after each.
func (t *Tools) SetClocks(ctx context.Context, c wire.Clocks) error {
	name := t.JetsonClocks
	if name == "" {
		name = "jetson_clocks"
	}
	store := t.path(clockStore)
	if c == wire.ClocksLocked {
		if err := os.MkdirAll(filepath.Dir(store), 0o755); err != nil {
			return fmt.Errorf("store clocks: %w", err)
		}
		if err := os.Remove(store); err != nil && !errors.Is(err, os.ErrNotExist) { // it does not overwrite
			return fmt.Errorf("store clocks: %w", err)
		}
		if out, err := t.Run(ctx, "", name, "--store", store); err != nil {
			return fmt.Errorf("%s --store: %s: %w", name, firstLine(out), err)
		}
		if out, err := t.Run(ctx, "", name); err != nil {
			return fmt.Errorf("%s: %s: %w", name, firstLine(out), err)
		}
		return nil
	}
	if _, err := os.Stat(store); err != nil {
		return fmt.Errorf("what the clocks were before they were locked is not known: restart the machine: %w", ErrUnsupported)
	}
	if out, err := t.Run(ctx, "", name, "--restore", store); err != nil {
		return fmt.Errorf("%s --restore: %s: %w", name, firstLine(out), err)
	}
	return nil
}

const (
	fanConf = "etc/nvfancontrol.conf"
	fanLife = 5 * time.Minute // that a profile is taken as known: asking costs a process
)

// fan is the profile of nvfancontrol.
func (t *Tools) fan(ctx context.Context) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fanAt.IsZero() || time.Since(t.fanAt) > fanLife {
		t.fanIs, t.fanAt = t.askFan(ctx), time.Now()
	}
	return t.fanIs
}

// askFan is what nvfancontrol says, else its default.
func (t *Tools) askFan(ctx context.Context) string {
	conf := t.text(t.path(fanConf))
	if conf == "" {
		return ""
	}
	if out, err := t.Run(ctx, "", "nvfancontrol", "-q"); err == nil {
		if g := activeRE.FindSubmatch(out); g != nil {
			return string(g[1])
		}
	}
	if g := profileRE.FindStringSubmatch(conf); g != nil {
		return g[2]
	}
	return ""
}

// SetFan implements Board: by nvfancontrol where its file is (R34 and later),
// else by nvpmodel -d.
func (t *Tools) SetFan(ctx context.Context, profile string) error {
	t.mu.Lock()
	t.fanAt = time.Time{} // it is asked for again
	t.mu.Unlock()
	path := t.path(fanConf)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if out, err := t.Run(ctx, "", t.nvpmodel(), "-d", profile); err != nil {
			return fmt.Errorf("nvpmodel -d %s: %s: %w", profile, firstLine(out), err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("set fan profile: %w", err)
	}
	var have []string
	for _, g := range haveRE.FindAllStringSubmatch(string(raw), -1) {
		have = append(have, g[1])
	}
	if !slices.Contains(have, profile) {
		return fmt.Errorf("fan profile %s: %w: it has %s", profile, ErrUnknown, strings.Join(have, ", "))
	}
	next := profileRE.ReplaceAll(raw, []byte("${1}"+profile))
	// In place: the service may write this file and no other one in its folder.
	if err := os.WriteFile(path, next, 0o644); err != nil {
		return fmt.Errorf("set fan profile: %w", err)
	}
	if err := os.Remove(t.path("var/lib/nvfancontrol/status")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set fan profile: %w", err)
	}
	if out, err := t.Run(ctx, "", "systemctl", "restart", "nvfancontrol"); err != nil {
		return fmt.Errorf("restart nvfancontrol: %s: %w", firstLine(out), err)
	}
	return nil
}
