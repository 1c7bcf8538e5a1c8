package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestLayOut(t *testing.T) {
	text := func(w io.Writer) {
		row(w, "NAME", "MESSAGE", "N")
		row(w, "cam-1", "a rather long message that says much", 7)
		row(w, "cam\x1b[2J", "", 12345)
		line(w, "note: a\nb")
		row(w, "x", "y")
	}
	want := "NAME     MESSAGE                               N\n" +
		"cam-1    a rather long message that says much  7\n" +
		"cam\uFFFD[2J  -                                     12345\n" +
		"note: a b\nx  y\n"
	if diff := cmp.Diff(want, layOut(text, 0)); diff != "" {
		t.Error(diff)
	}
	for l := range strings.Lines(layOut(text, 40)) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(l, "\n")); n > 40 {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	if got := layOut(text, 40); !strings.Contains(got, "…") || !strings.Contains(got, "12345") {
		t.Errorf("the widest column should give way, and only that:\n%s", got)
	}
}

// No text of a device reaches the terminal as anything but itself.
func TestCleanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := clean(string(rapid.SliceOf(rapid.Byte()).Draw(t, "s")))
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) || !utf8.ValidString(s) {
			t.Fatalf("%q", s)
		}
	})
}

func TestScreenDrawsOver(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, size: func() (int, int) { return 20, 4 }}
	many := func(w io.Writer) {
		for range 9 {
			line(w, "%s", strings.Repeat("x", 30))
		}
	}
	if err := s.draw(many); err != nil {
		t.Fatal(err)
	}
	first := "\r" + strings.Repeat("x", 18) + "…\x1b[K\n"
	if diff := cmp.Diff(first+first+"\r… and 7 more lines\x1b[K\n\x1b[J", out.String()); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if err := s.draw(func(w io.Writer) { line(w, "done") }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("\x1b[3A\rdone\x1b[K\n\x1b[J", out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &progress{out: &out, name: "m\x07.onnx", total: 4 << 20, started: start}
	p.reader(strings.NewReader(""), 2<<20) // a resumed upload
	p.draw(3<<20, start.Add(10*time.Second))
	if diff := cmp.Diff("\r\x1b[Km\uFFFD.onnx ██████████████████░░░░░░ 3.0 MiB of 4.0 MiB, 10s left", out.String()); diff != "" {
		t.Error(diff)
	}
	n := out.Len()
	p.draw(3<<20+1, start.Add(10*time.Second+time.Millisecond))
	if out.Len() != n {
		t.Error("drawn again too early")
	}
	p.done()
	if !strings.HasSuffix(out.String(), "\r\x1b[K") {
		t.Error("the line is not wiped")
	}
}
