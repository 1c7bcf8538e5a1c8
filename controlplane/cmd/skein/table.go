package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// row prints one line of cells; empty cells become "-". Control characters,
// which would come from devices and files, cannot reach the terminal.
func row(w io.Writer, cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		if text[i] = clean(fmt.Sprint(c)); text[i] == "" {
			text[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(text, "\t"))
}

// line prints one line of text that is no row.
func line(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, clean(fmt.Sprintf(format, args...)))
}

// clean puts a blank for line breaks and tabs, and a mark for everything else
// that is not to be seen.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r) && !unicode.Is(unicode.Zs, r):
			return '\uFFFD'
		}
		return r
	}, s)
}

const (
	columnGap = "  "
	minColumn = 8
)

// layOut aligns what text writes: consecutive rows form one table. With a
// width above 0, the widest columns give way until a row fits.
func layOut(text func(w io.Writer), width int) string {
	var raw, out strings.Builder
	text(&raw)
	var table [][]string
	flush := func() {
		align(&out, table, width)
		table = nil
	}
	for l := range strings.Lines(raw.String()) {
		l = strings.TrimSuffix(l, "\n")
		if cells := strings.Split(l, "\t"); len(cells) > 1 {
			table = append(table, cells)
			continue
		}
		flush()
		out.WriteString(l + "\n")
	}
	flush()
	return out.String()
}

func align(out *strings.Builder, table [][]string, width int) {
	var widths []int
	for _, cells := range table {
		for i, c := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	if width > 0 {
		fit(widths, width)
	}
	for _, cells := range table {
		var l strings.Builder
		for i, c := range cells {
			c = crop(c, widths[i])
			l.WriteString(c + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)) + columnGap)
		}
		out.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
}

// fit narrows the widest column, one by one, until all fit or none can give.
func fit(widths []int, width int) {
	total := len(columnGap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= minColumn {
			return
		}
		widths[widest]--
	}
}

// crop cuts s to a width and marks the cut.
func crop(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}
