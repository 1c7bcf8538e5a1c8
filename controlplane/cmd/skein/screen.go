package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// isTerminal reports the width of the terminal behind w; 0 and false when
// there is none.
func isTerminal(w any) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	return width, err == nil && width > 0
}

// screen shows the newest state of something that is watched: over what it
// drew before on a terminal, below it elsewhere.
type screen struct {
	out   io.Writer
	size  func() (width, height int) // nil: no terminal
	drawn int
}

func (a *app) screen() *screen {
	s := &screen{out: a.env.stdout}
	if _, tty := isTerminal(a.env.stdout); tty {
		f, _ := a.env.stdout.(*os.File)
		s.size = func() (int, int) {
			w, h, err := term.GetSize(int(f.Fd()))
			if err != nil {
				return 80, 24
			}
			return w, h
		}
	}
	return s
}

// draw shows what text writes. Lines are cut at the width of the terminal and
// the rest is left out at its height, since what scrolled away cannot be drawn
// over.
func (s *screen) draw(text func(w io.Writer)) error {
	if s.size == nil {
		lead := ""
		if s.drawn > 0 {
			lead = "\n"
		}
		s.drawn = 1
		_, err := io.WriteString(s.out, lead+layOut(text, 0))
		return err
	}
	width, height := s.size()
	lines := strings.Split(strings.TrimSuffix(layOut(text, width), "\n"), "\n")
	if room := max(2, height-1); len(lines) > room {
		lines = append(lines[:room-1], fmt.Sprintf("… and %d more lines", len(lines)-room+1))
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	for _, l := range lines {
		b.WriteString("\r" + crop(l, width-1) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	s.drawn = len(lines)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// stream is what Connect gives for a call that answers many times.
type stream[M any] interface {
	Receive() bool
	Msg() *M
	Err() error
	Close() error
}

// follow gives every message of a stream to show. The end that the user asked
// for is no error.
func follow[M any](ctx context.Context, s stream[M], show func(*M) error) error {
	defer s.Close()
	for s.Receive() {
		if err := show(s.Msg()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return s.Err()
}
