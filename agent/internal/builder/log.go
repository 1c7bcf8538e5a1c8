package builder

import (
	"fmt"
	"os"
	"sync"

	"github.com/skein-fleet/skein/proto/wire"
)

// maxLog bounds the log of a job; what TensorRT says beyond it is dropped.
const maxLog = 16 << 20

// buildLog is the log of a job, in a file, and how much of it was streamed.
type buildLog struct {
	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
	sent int64
}

func openLog(path string) (*buildLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of the build: %w", err)
	}
	return &buildLog{file: f}, nil
}

// Write implements io.Writer; a full log takes no more and says nothing.
func (l *buildLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.file.WriteAt(b[:min(int64(len(b)), maxLog-l.size)], l.size)
	l.size += int64(n)
	if err != nil {
		return n, err
	}
	return len(b), nil
}

// say adds a line of the agent's own.
func (l *buildLog) say(format string, args ...any) {
	fmt.Fprintf(l, "skein: "+format+"\n", args...)
}

// next returns what was not streamed yet, a part of it when there is much.
func (l *buildLog) next() (offset int64, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	data = make([]byte, min(l.size-l.sent, wire.MaxBuildLog))
	n, _ := l.file.ReadAt(data, l.sent)
	offset = l.sent
	l.sent += int64(n)
	return offset, data[:n]
}

// copyTo writes what there is now to another file.
func (l *buildLog) copyTo(path string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	data := make([]byte, l.size)
	if n, err := l.file.ReadAt(data, 0); int64(n) != l.size {
		return fmt.Errorf("read the log of the build: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("seal the log of the build: %w", err)
	}
	return nil
}
