package budget

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/window"
	"github.com/skein-fleet/skein/proto/wire"
)

const fileName = "state/budget.json"

// maxAccounts bounds the days and months that are remembered for one class and
// period.
const maxAccounts = 40

// key names one account: class, period, and the day or month.
type key struct {
	class  wire.LinkClass
	period wire.Period
	name   string
}

func (k key) text() string { return fmt.Sprintf("%s/%s/%s", k.class, k.period, k.name) }

// accounts is the durable part: bytes by account, as written last.
type accounts struct {
	Used map[string]int64 `json:"used"`
}

func openAccounts(f slot.Files) (a accounts, damaged bool, err error) {
	damaged, err = durable.Read(f, fileName, &a)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case errors.Is(err, durable.ErrDamaged):
		a, damaged, err = accounts{}, true, nil
	case err != nil:
		return a, false, fmt.Errorf("read the account of bytes: %w", err)
	}
	if a.Used == nil {
		a.Used = map[string]int64{}
	}
	return a, damaged, err
}

// names are the accounts of a class that t falls in. While the clock is
// doubtful the newest one that is known goes on.
func (a accounts) keys(class wire.LinkClass, t time.Time, zone *time.Location, doubtful bool) [2]key {
	out := [2]key{
		{class, wire.PerDay, t.In(zone).Format("2006-01-02")},
		{class, wire.PerMonth, t.In(zone).Format("2006-01")},
	}
	if !doubtful {
		return out
	}
	for i, k := range out {
		prefix := strings.TrimSuffix(k.text(), k.name)
		for _, have := range slices.Sorted(maps.Keys(a.Used)) {
			if name, ok := strings.CutPrefix(have, prefix); ok {
				out[i].name = name // the last one is the newest
			}
		}
	}
	return out
}

// charge returns the accounts after n more bytes were counted in keys.
func (a accounts) charge(keys [2]key, n int64) accounts {
	next := accounts{Used: maps.Clone(a.Used)}
	for _, k := range keys {
		_, known := next.Used[k.text()]
		next.Used[k.text()] += n
		if !known {
			next.forget(strings.TrimSuffix(k.text(), k.name), k.text())
		}
	}
	return next
}

// forget drops the oldest accounts beyond the bound, never the one in use.
func (a accounts) forget(prefix, inUse string) {
	var all []string
	for k := range a.Used {
		if strings.HasPrefix(k, prefix) && k != inUse {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	for len(all) >= maxAccounts {
		delete(a.Used, all[0])
		all = all[1:]
	}
}

// ends is when the account of a period is over.
func ends(p wire.Period, t time.Time, zone *time.Location) time.Time {
	_, end := window.Day(t, zone)
	if p == wire.PerMonth {
		_, end = window.Month(t, zone)
	}
	return end
}
