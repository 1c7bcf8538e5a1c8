package manifest

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/proto/wire"
	"pgregory.net/rapid"
)

func TestRender(t *testing.T) {
	decls := []ParamDecl{
		{Key: "name", Type: TypeString, Default: "none"},
		{Key: "camera", Type: TypeSecret, Required: true},
		{Key: "fps", Type: TypeInt, Default: "10"},
		{Key: "confidence", Type: TypeFloat, Default: "0.5"},
		{Key: "debug", Type: TypeBool},
		{Key: "every", Type: TypeDuration, Default: "1m"},
		{Key: "note", Type: TypeString},
	}
	fleet := map[string]Value{"fps": {Text: "20"}, "camera": {Text: "rtsp://fleet"}, "name": {Text: "fleet"}}
	site := map[string]Value{"fps": {Text: " 25 "}, "debug": {Text: "true"}, "confidence": {Text: "0.750"}, "unknown": {Text: "x"}}
	device := map[string]Value{"name": {Text: "", Secret: true}, "every": {Text: "90s"}}
	got, err := Render(decls, fleet, site, device)
	if err != nil {
		t.Fatal(err)
	}
	want := []wire.Param{
		{Key: "camera", Value: []byte("rtsp://fleet"), Secret: true},
		{Key: "confidence", Value: []byte("0.75")},
		{Key: "debug", Value: []byte("true")},
		{Key: "every", Value: []byte("1m30s")},
		{Key: "fps", Value: []byte("25")},
		{Key: "name", Value: []byte(""), Secret: true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"unknown"}, Undeclared(decls, fleet, site, device)); d != "" {
		t.Error(d)
	}
	// All faults at once, each with its level.
	_, err = Render(decls, map[string]Value{"fps": {Text: "many"}}, map[string]Value{"confidence": {Text: "NaN"}}, map[string]Value{"debug": {Text: "yes"}})
	for _, want := range []string{`"fps": fleet sets "many": want a whole number`, `"confidence": site sets "NaN": want a number`,
		`"debug": device sets "yes": want true or false`, `"camera": must be set`} {
		if err == nil || !errors.Is(err, ErrParam) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %s", err, want)
		}
	}
	if _, err := Render(decls, map[string]Value{"camera": {Text: strings.Repeat("x", MaxParamValue+1)}}); !errors.Is(err, ErrParam) {
		t.Errorf("long value: %v", err)
	}
}

func TestValidateDecls(t *testing.T) {
	for name, decls := range map[string][]ParamDecl{
		"no key": {{Type: TypeInt}}, "upper case": {{Key: "A", Type: TypeInt}}, "twice": {{Key: "a", Type: TypeInt}, {Key: "a", Type: TypeInt}},
		"type": {{Key: "a", Type: "number"}}, "no type": {{Key: "a"}}, "default": {{Key: "a", Type: TypeInt, Default: "x"}},
		"secret default": {{Key: "a", Type: TypeSecret, Default: "x"}}, "too many": make([]ParamDecl, MaxParams+1),
	} {
		if err := ValidateDecls(decls); !errors.Is(err, ErrParam) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Render(decls); !errors.Is(err, ErrParam) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParamsDigest: order and the Secret flag do not matter, everything else does.
func TestParamsDigest(t *testing.T) {
	if got := hex.EncodeToString(ParamsDigest(nil)); got != "76be8b528d0075f7aae98d6fa57a6d3c83ae480a8469e668d7b0af968995ac71" {
		t.Errorf("of nothing: %s, want the sha256 of an empty CBOR array", got)
	}
	gen := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) wire.Param {
		return wire.Param{Key: rapid.StringMatching(`[a-z]{1,4}`).Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value"), Secret: rapid.Bool().Draw(t, "secret")}
	}), 1, 6, func(p wire.Param) string { return p.Key })
	rapid.Check(t, func(t *rapid.T) {
		ps := gen.Draw(t, "params")
		want := ParamsDigest(ps)
		other := rapid.Permutation(slices.Clone(ps)).Draw(t, "order")
		for i := range other {
			other[i].Secret = !other[i].Secret
		}
		if !slices.Equal(ParamsDigest(other), want) {
			t.Fatal("order or the flag changed the digest")
		}
		i := rapid.IntRange(0, len(other)-1).Draw(t, "which")
		other[i].Value = append(slices.Clone(other[i].Value), 0)
		if slices.Equal(ParamsDigest(other), want) {
			t.Fatal("another value, the same digest")
		}
		if slices.Equal(ParamsDigest(ps[1:]), want) {
			t.Fatal("one less, the same digest")
		}
	})
}
