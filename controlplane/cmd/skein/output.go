package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// emit prints msg as JSON, or calls table.
func (a *app) emit(msg proto.Message, table func(w io.Writer)) error {
	if a.flags.output == "json" {
		return a.emitJSON(msg)
	}
	tw := tabwriter.NewWriter(a.env.stdout, 0, 4, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// emitJSON prints msg indented, with the field names of the proto files.
func (a *app) emitJSON(msg proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true, Multiline: true, Indent: "  "}.Marshal(msg)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.env.stdout, "%s\n", normaliseJSON(b))
	return err
}

// emitLine prints msg as one line of JSON, for streams.
func (a *app) emitLine(msg proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(msg)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.env.stdout, "%s\n", b)
	return err
}

// normaliseJSON takes out the second blank that protojson puts after some
// colons at random, so that scripts can compare output.
func normaliseJSON(b []byte) []byte {
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if k, v, ok := strings.Cut(l, `":  `); ok {
			lines[i] = k + `": ` + v
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

// row prints one tab-separated line; empty cells become "-".
func row(w io.Writer, cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		if text[i] = fmt.Sprint(c); text[i] == "" {
			text[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(text, "\t"))
}

// ago says how long since t, in the largest unit that is not zero.
func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	d := time.Since(t.AsTime()).Round(time.Second)
	switch {
	case d < 0:
		return "in the future"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// stamp prints a time with its zone.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05 MST")
}

// size prints bytes with a binary unit.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTP"[exp])
}

// labels prints k=v pairs in order of key.
func labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// short cuts a digest or id for tables.
func short(s string) string {
	s = strings.TrimPrefix(s, "sha256:")
	return s[:min(12, len(s))]
}

// isTerminal reports whether w is a terminal, and its width.
func isTerminal(w io.Writer) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	return width, err == nil
}

// bar draws done of total in the given width.
func bar(done, total, width int) string {
	if total <= 0 {
		return strings.Repeat("·", width)
	}
	full := min(width, width*done/total)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// pairs reads key=value arguments.
func pairs(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range in {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usageError{fmt.Errorf("%q: want key=value", p)}
		}
		out[k] = v
	}
	return out, nil
}
