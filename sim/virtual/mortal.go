package virtual

import (
	"context"
	"sync"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Mortal is an Inferer that dies where the metadata of the model file says so:
// it calls die instead of giving its last answer.
func Mortal(i runtime.Inferer, file string, die func()) (runtime.Inferer, error) {
	n, err := crashAfter(file)
	if err != nil || n == 0 {
		return i, err
	}
	return &mortal{Inferer: i, left: n, die: die}, nil
}

type mortal struct {
	runtime.Inferer
	die func()

	mu   sync.Mutex // guards left
	left int
}

// Infer implements runtime.Inferer.
func (m *mortal) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	m.mu.Lock()
	m.left--
	over := m.left <= 0
	m.mu.Unlock()
	if over {
		m.die()
	}
	return m.Inferer.Infer(ctx, id, req)
}
