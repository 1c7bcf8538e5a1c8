package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress draws the bytes of one transfer and the time left; without a
// terminal it draws nothing.
type progress struct {
	out     io.Writer // nil: no terminal
	name    string
	total   int64
	started time.Time

	mu    sync.Mutex // guards below: the transport reads in its own goroutine
	first int64      // bytes that were there at the start
	begun bool
	drawn time.Time
}

const drawEvery = 100 * time.Millisecond

func newProgress(out io.Writer, name string, total int64) *progress {
	p := &progress{name: name, total: total, started: time.Now()}
	if _, tty := isTerminal(out); tty {
		p.out = out
	}
	return p
}

// reader counts what is read from r, which starts at an offset of the whole.
func (p *progress) reader(r io.Reader, offset int64) io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.begun {
		p.begun, p.first = true, offset
	}
	return &progressReader{p: p, r: r, at: offset}
}

type progressReader struct {
	p  *progress
	r  io.Reader
	at int64
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.at += int64(n)
	r.p.draw(r.at, time.Now())
	return n, err
}

// at notes how far a transfer is, and how much of that was there before.
func (p *progress) at(done, before int64) {
	p.mu.Lock()
	p.begun, p.first = true, before
	p.mu.Unlock()
	p.draw(done, time.Now())
}

func (p *progress) draw(at int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || now.Sub(p.drawn) < drawEvery && at < p.total {
		return
	}
	p.drawn = now
	left := "?"
	if sent := at - p.first; sent > 0 {
		left = time.Duration(float64(now.Sub(p.started)) / float64(sent) * float64(p.total-at)).Round(time.Second).String()
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s %s %s of %s, %s left", clean(p.name), bar(at, p.total, 24), size(at), size(p.total), left)
}

// grown draws how much there is of what nobody knows the length of.
func (p *progress) grown(at int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || now.Sub(p.drawn) < drawEvery {
		return
	}
	p.drawn, p.begun = now, true
	fmt.Fprintf(p.out, "\r\x1b[K%s %s", clean(p.name), size(at))
}

// done wipes the line.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil && p.begun {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
