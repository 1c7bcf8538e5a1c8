package store

import (
	"context"
	"errors"
	"sync"
)

// ErrClosed is returned by an Appender that no longer runs.
var ErrClosed = errors.New("store is closing")

// Appender groups single rows of many goroutines into one transaction: a
// caller of Append returns when its row is durable, and pays a share of one
// fsync. Run must be running.
type Appender[T any] struct {
	db    *DB
	write func(context.Context, *Tx, []T) error
	wake  chan struct{}

	mu     sync.Mutex // guards batch and closed
	batch  *batch[T]
	closed bool
}

type batch[T any] struct {
	rows []T
	done chan struct{}
	err  error // valid once done is closed
}

// NewAppender returns an Appender that stores batches with write.
func NewAppender[T any](db *DB, write func(context.Context, *Tx, []T) error) *Appender[T] {
	return &Appender[T]{db: db, write: write, wake: make(chan struct{}, 1)}
}

// Append stores row and returns when it is durable.
func (a *Appender[T]) Append(ctx context.Context, row T) error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return ErrClosed
	}
	if a.batch == nil {
		a.batch = &batch[T]{done: make(chan struct{})}
	}
	b := a.batch
	b.rows = append(b.rows, row)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run writes batches until ctx ends; what was appended before that is stored.
func (a *Appender[T]) Run(ctx context.Context) error {
	for {
		select {
		case <-a.wake:
			a.flush(context.WithoutCancel(ctx))
		case <-ctx.Done():
			a.mu.Lock()
			a.closed = true
			a.mu.Unlock()
			a.flush(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (a *Appender[T]) flush(ctx context.Context) {
	a.mu.Lock()
	b := a.batch
	a.batch = nil
	a.mu.Unlock()
	if b == nil {
		return
	}
	b.err = a.db.Update(ctx, func(tx *Tx) error { return a.write(ctx, tx, b.rows) })
	close(b.done)
}
