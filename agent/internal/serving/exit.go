package serving

import (
	"fmt"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
)

// String says how the server ended, for people.
func (e Exit) String() string {
	var b strings.Builder
	switch {
	case e.OOM:
		b.WriteString("oom: the kernel ended it for memory")
		if e.Peak > 0 {
			fmt.Fprintf(&b, ", %d MiB at its peak", e.Peak>>20)
		}
		if e.Limit > 0 {
			fmt.Fprintf(&b, ", its limit is %d MiB", e.Limit>>20)
		}
	case e.Signal != "":
		b.WriteString("ended by " + e.Signal)
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	default:
		fmt.Fprintf(&b, "exit status %d", e.Code)
	}
	if line := e.lastWords(); line != "" {
		b.WriteString("; its last line: " + line)
	}
	return b.String()
}

const maxLastWords = 300

func (e Exit) lastWords() string {
	for i := len(e.Tail) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(e.Tail[i]); line != "" {
			return line[:min(len(line), maxLastWords)]
		}
	}
	return ""
}

// cause is the error of a server that ended before it was ready.
func (e Exit) cause() error {
	err := fmt.Errorf("the server ended before it was ready: %s", e)
	switch {
	case e.OOM && e.Limit == 0, e.Code == ExitNoCapacity:
		return fmt.Errorf("%w: %w", runtime.ErrNoCapacity, err)
	case e.Code == ExitIncompatible:
		return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
	}
	return err
}
