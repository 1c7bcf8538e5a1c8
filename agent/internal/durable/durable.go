// Package durable keeps the few small files without which a device is nobody
// and runs nothing: each carries a checksum, and a second copy stands in for
// one that the disk damaged. It owns the envelope; what a power cut leaves is
// what slot.Files promises for each file. internal/state and internal/enroll
// import it.
package durable

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/ota/slot"
)

// ErrDamaged is returned by Read when there is something, and none of it is whole.
var ErrDamaged = errors.New("file and its copy are damaged")

const (
	copySuffix    = ".copy"
	damagedSuffix = ".damaged"
)

// envelope is the form of a file. One with neither is a bare body, as files were
// before they had a checksum.
type envelope struct {
	SHA256 string          `json:"sha256"`
	Body   json.RawMessage `json:"body"`
}

func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return json.Marshal(envelope{hex.EncodeToString(sum[:]), body})
}

func decode(raw []byte, v any) error {
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return err
	}
	if e.SHA256 == "" && e.Body == nil {
		e.Body = raw
	} else if sum := sha256.Sum256(e.Body); hex.EncodeToString(sum[:]) != e.SHA256 {
		return errors.New("the checksum does not fit")
	}
	return json.Unmarshal(e.Body, v)
}

// Write replaces the file, atomically and durably.
func Write(f slot.Files, name string, v any) error {
	raw, err := encode(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return f.WriteFile(name, raw)
}

// WriteCopy replaces the copy. It comes after Write, for what must not be lost;
// an error leaves the older copy.
func WriteCopy(f slot.Files, name string, v any) error { return Write(f, name+copySuffix, v) }

// Read fills v from the file, or from the copy when the file is damaged or gone.
// Damaged says that it was; the file as found is set aside as NAME.damaged
// where the disk can be written. With neither it returns fs.ErrNotExist.
func Read[T any](f slot.Files, name string, v *T) (damaged bool, err error) {
	raw, err := f.ReadFile(name)
	if err == nil {
		var got T
		if err = decode(raw, &got); err == nil {
			*v = got
			return false, nil
		}
		// Best effort: it is for people to look at.
		_ = f.WriteFile(name+damagedSuffix, raw)
		err = fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)
	}
	raw, cerr := f.ReadFile(name + copySuffix)
	if cerr != nil {
		return errors.Is(err, ErrDamaged), err
	}
	var got T
	if derr := decode(raw, &got); derr != nil {
		return true, fmt.Errorf("%w: %s: %w", ErrDamaged, name, errors.Join(err, derr))
	}
	*v = got
	return true, nil
}
