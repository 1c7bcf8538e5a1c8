package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"
)

// formats are the values of --output.
func formats() []string { return []string{"table", "json", "yaml"} }

// emit prints msg in the chosen format; text writes the one for people, whole.
func (a *app) emit(msg proto.Message, text func(w io.Writer)) error {
	return a.print(msg, text, 0)
}

// emitList is emit for tables of many things: on a terminal, wide columns are
// cut so that a row fits on a line.
func (a *app) emitList(msg proto.Message, text func(w io.Writer)) error {
	width, _ := isTerminal(a.env.stdout)
	return a.print(msg, text, width)
}

// table says that output is for people.
func (a *app) table() bool { return a.flags.output == "table" }

func (a *app) print(msg proto.Message, text func(w io.Writer), width int) error {
	if a.table() {
		_, err := io.WriteString(a.env.stdout, layOut(text, width))
		return err
	}
	b, err := marshal(msg)
	if err != nil {
		return err
	}
	return a.printJSON(b)
}

// printJSON prints a JSON document indented, or as YAML.
func (a *app) printJSON(b []byte) error {
	var out bytes.Buffer
	if a.flags.output == "yaml" {
		doc, err := toYAML(b)
		if err != nil {
			return err
		}
		out.Write(doc)
	} else {
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	_, err := a.env.stdout.Write(out.Bytes())
	return err
}

// emitEach prints one message of a stream: a line of JSON or a YAML document.
func (a *app) emitEach(msg proto.Message) error {
	b, err := marshal(msg)
	if err != nil {
		return err
	}
	if a.flags.output == "yaml" {
		doc, err := toYAML(b)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.env.stdout, "---\n%s", doc)
		return err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil { // protojson puts blanks in at random
		return err
	}
	out.WriteByte('\n')
	_, err = a.env.stdout.Write(out.Bytes())
	return err
}

// marshal gives all fields under the names of the proto files, so that scripts
// find every key.
func marshal(msg proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(msg)
}

// toYAML turns JSON, which is YAML in flow style, into block style; the order
// of keys stays.
func toYAML(b []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	blockStyle(&doc)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

// blockStyle takes the flow style off containers and the quotes off keys.
// Values that were text keep their quotes, so that "1" stays text.
func blockStyle(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode && len(n.Content) > 0 {
		n.Style = 0
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			c.Style = 0
		}
		blockStyle(c)
	}
}

// note says something beside the result, to people.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.env.stderr, "skein: "+format+"\n", args...)
}

// ago says how long since t, in the largest unit that is not zero.
func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	d := time.Since(t.AsTime()).Round(time.Second)
	switch {
	case d < -time.Minute:
		return "in the future"
	case d < time.Minute: // clocks differ a little
		return fmt.Sprintf("%ds ago", max(0, int(d.Seconds())))
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

// bar draws done of total in the given width.
func bar(done, total int64, width int) string {
	if total <= 0 {
		return strings.Repeat("·", width)
	}
	full := int(min(int64(width), max(0, int64(width)*done/total)))
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
