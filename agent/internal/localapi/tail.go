package localapi

import (
	"bytes"
	"sync"
)

// Tail keeps the newest lines that are written to it. One Write is taken as
// whole lines, as slog's handlers do it.
type Tail struct {
	max int

	mu    sync.Mutex // guards lines
	lines []string
}

// NewTail keeps up to max lines.
func NewTail(max int) *Tail { return &Tail{max: max} }

// Write takes lines; it never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range bytes.Lines(p) {
		t.lines = append(t.lines, string(bytes.TrimRight(l, "\n")))
	}
	if n := len(t.lines) - t.max; n > 0 {
		t.lines = append([]string(nil), t.lines[n:]...)
	}
	return len(p), nil
}

// Lines returns up to limit of the newest lines, oldest first; all when limit
// is 0 or less.
func (t *Tail) Lines(limit int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := 0
	if limit > 0 {
		from = max(0, len(t.lines)-limit)
	}
	return append([]string(nil), t.lines[from:]...)
}
