// Package turns hands out work by key: what comes for a key while it waits is
// merged, and a key that is being worked on is not handed out a second time. So
// one device that is stuck holds one worker and nobody else. It starts nothing.
package turns

import "sync"

// Queue is work of type V by keys of type K, in the order in which they came.
// It is safe for concurrent use.
type Queue[K comparable, V any] struct {
	merge func(waiting, next V) V

	mu     sync.Mutex // guards all below
	cond   *sync.Cond
	order  []K
	wait   map[K]V
	busy   map[K]bool
	closed bool
}

// New returns an empty queue; merge makes one of what waits for a key and what
// comes next for it.
func New[K comparable, V any](merge func(waiting, next V) V) *Queue[K, V] {
	q := &Queue[K, V]{merge: merge, wait: map[K]V{}, busy: map[K]bool{}}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// Add puts work in.
func (q *Queue[K, V]) Add(k K, v V) {
	q.mu.Lock()
	defer q.mu.Unlock()
	before, waits := q.wait[k]
	if waits {
		v = q.merge(before, v)
	}
	q.wait[k] = v
	if !waits && !q.busy[k] {
		q.order = append(q.order, k)
		q.cond.Signal()
	}
}

// Take blocks until there is work; ok is false when the queue is closed. Done
// must follow.
func (q *Queue[K, V]) Take() (k K, v V, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.order) == 0 && !q.closed {
		q.cond.Wait()
	}
	if q.closed {
		return k, v, false
	}
	var none K
	k, q.order[0] = q.order[0], none
	q.order = q.order[1:]
	v = q.wait[k]
	delete(q.wait, k)
	q.busy[k] = true
	return k, v, true
}

// Done says that the work taken for k is done.
func (q *Queue[K, V]) Done(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, k)
	if _, waits := q.wait[k]; waits {
		q.order = append(q.order, k)
		q.cond.Signal()
	}
}

// Len returns for how many keys work can be taken now.
func (q *Queue[K, V]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.order)
}

// Close ends all that wait in Take.
func (q *Queue[K, V]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
}
