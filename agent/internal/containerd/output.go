package containerd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"
)

// rotated is the suffix of the older half of a log.
const rotated = ".1"

// output is the log file of a container. The shim appends to it, so it goes on
// while the agent and the daemon are away; it is halved by the agent when it
// has grown: the end of it is copied aside and the file is emptied. Lines that
// come between these two are lost, and there is no bound while no agent runs.
type output struct {
	path string
	max  int64
}

func (l *Launcher) newLog(id string) (*output, error) {
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for logs of containers: %w", err)
	}
	if err := l.removeLog(id); err != nil {
		return nil, err
	}
	return l.oldLog(id), nil
}

func (l *Launcher) oldLog(id string) *output {
	return &output{path: l.logPath(id), max: l.opts.LogBytes}
}

// bound halves the log when it is too long.
func (o *output) bound() error {
	info, err := os.Stat(o.path)
	if err != nil || info.Size() <= o.max/2 {
		return nil
	}
	end, err := lastBytes(o.path, o.max/2)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path+rotated, end, 0o600); err != nil {
		return fmt.Errorf("keep the end of a log: %w", err)
	}
	if err := os.Truncate(o.path, 0); err != nil {
		return fmt.Errorf("empty a log: %w", err)
	}
	return nil
}

const (
	tailLines = 20
	tailBytes = 8 << 10
)

// tail returns the last lines.
func (o *output) tail() []string {
	var all []byte
	for _, p := range []string{o.path + rotated, o.path} {
		b, err := lastBytes(p, tailBytes)
		if err != nil {
			continue // what cannot be read was not written
		}
		all = append(all, b...)
	}
	all = bytes.TrimRight(all[max(0, len(all)-tailBytes):], "\n")
	if len(all) == 0 {
		return nil
	}
	lines := bytes.Split(all, []byte("\n"))
	lines = lines[max(0, len(lines)-tailLines):]
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = string(bytes.ToValidUTF8(bytes.TrimRight(l, "\r"), []byte("?")))
	}
	return out
}

// lastBytes reads the last n bytes of a file.
func lastBytes(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read a log: %w", err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-n), n))
	if err != nil {
		return nil, fmt.Errorf("read a log: %w", err)
	}
	return b, nil
}

// boundEvery is the time between two looks at the length of a log.
const boundEvery = 10 * time.Second
