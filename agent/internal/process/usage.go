package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
)

// clockTick is USER_HZ, which is 100 on every Linux that has it in /proc.
const clockTick = 100

// groupUsage sums up the processes of a group.
func groupUsage(pgid int) (serving.Usage, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return serving.Usage{}, fmt.Errorf("measure process group %d: %w", pgid, err)
	}
	var u serving.Usage
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		raw, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		group, cpu, rss, err := parseStat(string(raw))
		if err != nil || group != pgid {
			continue
		}
		u.Pids++
		u.CPU += cpu
		u.Memory += rss
	}
	if u.Pids == 0 {
		return u, fmt.Errorf("measure process group %d: it has no process", pgid)
	}
	return u, nil
}

// parseStat reads /proc/PID/stat; the name in it may hold anything.
func parseStat(s string) (group int, cpu time.Duration, rss int64, err error) {
	at := strings.LastIndexByte(s, ')')
	if at < 0 {
		return 0, 0, 0, errors.New("no name")
	}
	f := strings.Fields(s[at+1:])
	if len(f) < 22 {
		return 0, 0, 0, fmt.Errorf("%d fields", len(f))
	}
	num := func(i int) int64 {
		n, e := strconv.ParseInt(f[i], 10, 64)
		err = errors.Join(err, e)
		return n
	}
	group, rss = int(num(2)), num(21)*int64(os.Getpagesize())
	cpu = time.Duration(num(11)+num(12)) * time.Second / clockTick
	return group, cpu, rss, err
}

// oomKills is how many processes the kernel has ended for memory since boot; 0
// where it does not count them.
func oomKills() int64 {
	raw, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
