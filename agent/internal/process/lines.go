package process

import (
	"log/slog"
	"slices"
	"sync"
)

// lines writes a server's output to the log, line by line, and keeps the last.
type lines struct {
	log *slog.Logger

	mu   sync.Mutex // guards what follows
	rest []byte
	last []string
}

const (
	maxLogLine = 4 << 10
	keptLines  = 40
)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		if c != '\n' && len(l.rest) < maxLogLine {
			l.rest = append(l.rest, c)
			continue
		}
		l.flush()
		if c != '\n' {
			l.rest = append(l.rest, c)
		}
	}
	return len(p), nil
}

func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.log.Info("model server", "line", string(l.rest))
		l.last = append(l.last, string(l.rest))
		l.last = l.last[max(0, len(l.last)-keptLines):]
	}
	l.rest = l.rest[:0]
}

// tail is what it said last.
func (l *lines) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	return slices.Clone(l.last)
}
