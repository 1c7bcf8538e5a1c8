package rollout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// MaxSpecBytes bounds the JSON form of a Spec.
const MaxSpecBytes = 1 << 20

// FieldError is a complaint about one field of a Spec.
type FieldError struct {
	Path string // as in waves[1].ramp.factor
	Msg  string
}

func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

// Decode reads the JSON form of a Spec. It refuses unknown fields, fields given
// twice, null and values of the wrong kind, each with its path. The result is
// as written: call Validate on it, and Normalize to see the defaults. An empty
// list or map says nothing and is the same as a field left out.
func Decode(b []byte) (Spec, error) {
	var s Spec
	if len(b) > MaxSpecBytes {
		return s, fmt.Errorf("rollout spec has %d bytes, at most %d are read", len(b), MaxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return s, fmt.Errorf("read rollout spec: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("read rollout spec: text after the closing brace")
	}
	if err := decodeValue("", raw, reflect.ValueOf(&s).Elem()); err != nil {
		return Spec{}, err
	}
	return s, nil
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func decodeValue(path string, raw json.RawMessage, v reflect.Value) error {
	if string(raw) == "null" {
		return &FieldError{path, "null is not a value: leave the field out"}
	}
	if v.Addr().Type().Implements(unmarshaler) {
		if err := v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(raw); err != nil {
			return &FieldError{path, err.Error()}
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return decodeStruct(path, raw, v)
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		v.Set(p)
		return decodeValue(path, raw, p.Elem())
	case reflect.Slice:
		return decodeSlice(path, raw, v)
	case reflect.Map:
		return decodeObject(path, raw, func(key, at string, raw json.RawMessage) error {
			e := reflect.New(v.Type().Elem()).Elem()
			if err := decodeValue(at, raw, e); err != nil {
				return err
			}
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
			return nil
		})
	default:
		if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
			return &FieldError{path, "want " + kindName(v.Kind())}
		}
		return nil
	}
}

func decodeStruct(path string, raw json.RawMessage, v reflect.Value) error {
	return decodeObject(path, raw, func(key, at string, raw json.RawMessage) error {
		for i := range v.NumField() {
			if name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); name == key {
				return decodeValue(at, raw, v.Field(i))
			}
		}
		return &FieldError{at, "unknown field; known here: " + strings.Join(fieldNames(v.Type()), ", ")}
	})
}

func decodeSlice(path string, raw json.RawMessage, v reflect.Value) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return &FieldError{path, "want a list"}
	}
	if len(items) == 0 {
		return nil
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		if err := decodeValue(fmt.Sprintf("%s[%d]", path, i), item, v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

// decodeObject calls each for the members of an object, in order.
func decodeObject(path string, raw json.RawMessage, each func(key, at string, raw json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return &FieldError{path, "want an object"}
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return &FieldError{path, err.Error()}
		}
		key, at := tok.(string), tok.(string)
		if path != "" {
			at = path + "." + key
		}
		if seen[key] {
			return &FieldError{at, "given twice"}
		}
		seen[key] = true
		var member json.RawMessage
		if err := dec.Decode(&member); err != nil {
			return &FieldError{at, err.Error()}
		}
		if err := each(key, at, member); err != nil {
			return err
		}
	}
	return nil
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func kindName(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	default:
		return "a whole number"
	}
}
