package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/term"
)

// isTerminal reports the width of the terminal behind w; 0 and false when
// there is none.
func isTerminal(w any) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width, true
	}
	return 80, true // a line without a known width
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
			if err != nil || w == 0 || h == 0 {
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

// follow gives every message of a stream to show until it ends.
func follow[M any](s stream[M], show func(*M) error) error {
	defer s.Close()
	for s.Receive() {
		if err := show(s.Msg()); err != nil {
			return err
		}
	}
	return s.Err()
}

// followOn is follow for a stream that has no end of its own: the end that the
// user asked for is no error, any other is one.
func followOn[M any](ctx context.Context, s stream[M], show func(*M) error) error {
	err := follow(s, show)
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		return errWatchEnded()
	}
	return err
}

func errWatchEnded() error {
	return connect.NewError(connect.CodeUnavailable, errors.New("the server ended the watch"))
}
