package fleet

import (
	"context"
	"sync"
)

// subscribers are told which devices changed.
type subscribers struct {
	mu   sync.Mutex // guards list
	list map[*subscriber]struct{}
}

type subscriber struct {
	mu      sync.Mutex // guards pending and order
	pending map[string]struct{}
	order   []string
	wake    chan struct{}
}

// Subscribe returns the ids of devices that changed, until ctx ends; then the
// channel is closed. A device that changes often while nobody reads is given
// once, so a slow reader loses no device and costs no more than one id each.
func (f *Fleet) Subscribe(ctx context.Context) <-chan string {
	s := &subscriber{pending: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	f.subs.mu.Lock()
	if f.subs.list == nil {
		f.subs.list = map[*subscriber]struct{}{}
	}
	f.subs.list[s] = struct{}{}
	f.subs.mu.Unlock()
	out := make(chan string)
	go func() {
		defer close(out)
		defer func() {
			f.subs.mu.Lock()
			delete(f.subs.list, s)
			f.subs.mu.Unlock()
		}()
		s.pump(ctx, out)
	}()
	return out
}

func (s *subscriber) pump(ctx context.Context, out chan<- string) {
	for {
		s.mu.Lock()
		var id string
		if len(s.order) > 0 {
			id = s.order[0]
			s.order = s.order[1:]
			delete(s.pending, id)
		}
		s.mu.Unlock()
		if id == "" {
			select {
			case <-s.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case out <- id:
		case <-ctx.Done():
			return
		}
	}
}

func (s *subscriber) add(id string) {
	s.mu.Lock()
	if _, dup := s.pending[id]; !dup {
		s.pending[id] = struct{}{}
		s.order = append(s.order, id)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (f *Fleet) notify(id string) {
	f.subs.mu.Lock()
	defer f.subs.mu.Unlock()
	for s := range f.subs.list {
		s.add(id)
	}
}
