package manifest

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// ErrParam is returned for parameters that do not fit their declarations.
var ErrParam = errors.New("parameter")

// The types of a parameter.
const (
	TypeString   = "string"
	TypeInt      = "int"
	TypeFloat    = "float"
	TypeBool     = "bool"
	TypeDuration = "duration"
	TypeURL      = "url"    // absolute, with a host
	TypeSecret   = "secret" // a string that is sealed to the device
)

// Limits of parameters.
const (
	MaxParams     = 256
	MaxParamValue = 16 << 10
)

// ParamDecl declares a parameter of a release.
type ParamDecl struct {
	Key         string `json:"key"`
	Type        string `json:"type"`
	Default     string `json:"default,omitempty"`
	Description string `json:"description,omitempty"`
	Required    bool   `json:"required,omitempty"` // somebody must set it
}

// Value is what a person set at one level.
type Value struct {
	Text   string
	Secret bool
}

var paramKey = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,63}$`)

// ValidateDecls checks declarations: keys, types, defaults.
func ValidateDecls(decls []ParamDecl) error {
	if len(decls) > MaxParams {
		return fmt.Errorf("%w: %d declared, limit %d", ErrParam, len(decls), MaxParams)
	}
	seen := map[string]bool{}
	for _, d := range decls {
		if !paramKey.MatchString(d.Key) {
			return fmt.Errorf("%w %q: want a key of lower-case letters, digits and _ . - that starts with a letter", ErrParam, d.Key)
		}
		if seen[d.Key] {
			return fmt.Errorf("%w %q: declared twice", ErrParam, d.Key)
		}
		seen[d.Key] = true
		if d.Default == "" {
			if _, known := typeWords[d.Type]; !known {
				return fmt.Errorf("%w %q: type %q: want string, int, float, bool, duration, url or secret", ErrParam, d.Key, d.Type)
			}
			continue
		}
		if d.Type == TypeSecret {
			return fmt.Errorf("%w %q: a secret has no default, it would be public", ErrParam, d.Key)
		}
		if _, err := canonical(d.Type, d.Default); err != nil {
			return fmt.Errorf("%w %q: default: %w", ErrParam, d.Key, err)
		}
	}
	return nil
}

var typeWords = map[string]string{
	TypeString: "text", TypeSecret: "text", TypeInt: "a whole number", TypeFloat: "a number",
	TypeBool: "true or false", TypeDuration: "a duration such as 10m",
	TypeURL: "an absolute URL such as rtsp://camera-1/stream",
}

// canonical checks text against a type and returns its one form.
func canonical(kind, text string) (string, error) {
	bad := func() (string, error) { return "", fmt.Errorf("%.60q: want %s", text, typeWords[kind]) }
	switch kind {
	case TypeString, TypeSecret:
		return text, nil
	case TypeInt:
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return bad()
		}
		return strconv.FormatInt(n, 10), nil
	case TypeFloat:
		f, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return bad()
		}
		return strconv.FormatFloat(f, 'g', -1, 64), nil
	case TypeBool:
		switch strings.TrimSpace(text) {
		case "true", "false":
			return strings.TrimSpace(text), nil
		}
		return bad()
	case TypeDuration:
		d, err := time.ParseDuration(strings.TrimSpace(text))
		if err != nil {
			return bad()
		}
		return d.String(), nil
	case TypeURL:
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil || u.Scheme == "" || u.Host == "" {
			return bad()
		}
		return u.String(), nil
	}
	return "", fmt.Errorf("type %q: want string, int, float, bool, duration, url or secret", kind)
}

// layerNames name the levels of Render in its errors.
var layerNames = []string{"fleet", "site", "device"}

// Render returns the parameters of a device, sorted by key, in clear: defaults
// below the layers, each layer above the one before (fleet, site, device).
// What is set but not declared is left out: see Undeclared. All faults are
// reported at once.
func Render(decls []ParamDecl, layers ...map[string]Value) ([]wire.Param, error) {
	if err := ValidateDecls(decls); err != nil {
		return nil, err
	}
	var out []wire.Param
	var faults []error
	for _, d := range decls {
		text, secret, set, from := d.Default, d.Type == TypeSecret, d.Default != "", "default"
		for i, layer := range layers {
			if v, ok := layer[d.Key]; ok {
				text, secret, set, from = v.Text, d.Type == TypeSecret || v.Secret, true, layerName(i)
			}
		}
		switch {
		case !set && d.Required:
			faults = append(faults, fmt.Errorf("%w %q: must be set (%s) for the fleet, the site or the device", ErrParam, d.Key, cmp.Or(typeWords[d.Type], d.Type)))
			continue
		case !set:
			continue
		case len(text) > MaxParamValue:
			faults = append(faults, fmt.Errorf("%w %q: %s sets %d bytes, limit %d", ErrParam, d.Key, from, len(text), MaxParamValue))
			continue
		}
		value, err := canonical(d.Type, text)
		if err != nil {
			faults = append(faults, fmt.Errorf("%w %q: %s sets %w", ErrParam, d.Key, from, err))
			continue
		}
		out = append(out, wire.Param{Key: d.Key, Value: []byte(value), Secret: secret})
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	slices.SortFunc(out, func(a, b wire.Param) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func layerName(i int) string {
	if i < len(layerNames) {
		return layerNames[i]
	}
	return fmt.Sprintf("layer %d", i+1)
}

// Undeclared returns the keys that some layer sets and the release does not
// declare, sorted: often a misspelling, sometimes meant for the next release.
func Undeclared(decls []ParamDecl, layers ...map[string]Value) []string {
	known := map[string]bool{}
	for _, d := range decls {
		known[d.Key] = true
	}
	var out []string
	for _, l := range layers {
		for k := range l {
			if !known[k] {
				known[k] = true
				out = append(out, k)
			}
		}
	}
	slices.Sort(out)
	return out
}

// ParamsDigest is the digest of parameters in clear: both sides compute it,
// the control plane before it seals the secrets, the device after it opened
// them. The order of params and the Secret flag do not matter.
func ParamsDigest(params []wire.Param) []byte {
	type pair struct {
		_   struct{} `cbor:",toarray"`
		Key string
		Sum [sha256.Size]byte
	}
	pairs := make([]pair, 0, len(params))
	for _, p := range params {
		pairs = append(pairs, pair{Key: p.Key, Sum: sha256.Sum256(p.Value)})
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), slices.Compare(a.Sum[:], b.Sum[:]))
	})
	b, err := wire.Marshal(pairs)
	if err != nil {
		panic(err) // text and byte strings always encode
	}
	sum := sha256.Sum256(b)
	return sum[:]
}
