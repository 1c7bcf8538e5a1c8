package meter

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/skein-fleet/skein/ota"
)

// Errors of checkpoints.
var (
	// ErrBadCheckpoint is returned for a file that is damaged or no checkpoint.
	ErrBadCheckpoint = errors.New("bad checkpoint")
	// ErrCheckpointMismatch is returned when a checkpoint is of another
	// training than the one that is to go on from it.
	ErrCheckpointMismatch = errors.New("checkpoint is of another training")
)

// Checkpoint is the whole state of a training between two steps. README.md
// describes the file.
type Checkpoint struct {
	Recipe Recipe
	Run    string
	Step   int
	RNG    []byte // random state before the shuffle of the epoch that Step lies in

	Params, M, V []float32 // weights and Adam's two moments
}

const (
	ckptMagic  = "SKMETER\x01"
	ckptHeader = 64 << 10 // most bytes of the JSON header
)

// header is the JSON part of the file.
type header struct {
	Recipe Recipe `json:"recipe"`
	Run    string `json:"run"`
	Step   int    `json:"step"`
	RNG    []byte `json:"rng"`
}

// Encode returns the bytes of the file.
func (c *Checkpoint) Encode() ([]byte, error) {
	h, err := json.Marshal(header{Recipe: c.Recipe, Run: c.Run, Step: c.Step, RNG: c.RNG})
	if err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	b := binary.LittleEndian.AppendUint32([]byte(ckptMagic), uint32(len(h)))
	b = append(b, h...)
	for _, part := range [][]float32{c.Params, c.M, c.V} {
		for _, v := range part {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// DecodeCheckpoint reads the bytes of a file. Every error wraps ErrBadCheckpoint.
func DecodeCheckpoint(b []byte) (*Checkpoint, error) {
	const fixed = len(ckptMagic) + 4
	if len(b) < fixed+sha256.Size || string(b[:len(ckptMagic)]) != ckptMagic {
		return nil, fmt.Errorf("%w: it does not begin as one of version 1", ErrBadCheckpoint)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w: the checksum does not match, the file is damaged", ErrBadCheckpoint)
	}
	n := binary.LittleEndian.Uint32(body[len(ckptMagic):])
	body = body[fixed:]
	if n > ckptHeader || int(n) > len(body) {
		return nil, fmt.Errorf("%w: a header of %d bytes", ErrBadCheckpoint, n)
	}
	var h header
	dec := json.NewDecoder(bytes.NewReader(body[:n]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrBadCheckpoint, err)
	}
	if err := h.Recipe.Arch.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBadCheckpoint, err)
	}
	body = body[n:]
	size := h.Recipe.Arch.Size()
	if len(body) != 3*4*size || h.Step < 0 || h.Step > h.Recipe.Steps {
		return nil, fmt.Errorf("%w: step %d of %d, %d bytes of state where %d are needed",
			ErrBadCheckpoint, h.Step, h.Recipe.Steps, len(body), 3*4*size)
	}
	c := &Checkpoint{Recipe: h.Recipe, Run: h.Run, Step: h.Step, RNG: h.RNG}
	for _, part := range []*[]float32{&c.Params, &c.M, &c.V} {
		*part = make([]float32, size)
		for i := range *part {
			(*part)[i] = math.Float32frombits(binary.LittleEndian.Uint32(body[4*i:]))
		}
		body = body[4*size:]
	}
	return c, nil
}

// ReadCheckpoint reads a file; the error wraps fs.ErrNotExist when there is none.
func ReadCheckpoint(path string) (*Checkpoint, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	defer f.Close()
	const most = 256 << 20
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", path, err)
	}
	if len(b) > most {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", path, ErrBadCheckpoint, most)
	}
	c, err := DecodeCheckpoint(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: remove it to start afresh", path, err)
	}
	return c, nil
}

// Write replaces the file at path: after a crash it holds the old checkpoint
// or the new one.
func (c *Checkpoint) Write(path string) error {
	b, err := c.Encode()
	if err != nil {
		return err
	}
	if err := writeAtomic(path, b); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return nil
}

func writeAtomic(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fits says what in r differs from the recipe of the checkpoint.
func (c *Checkpoint) fits(r Recipe) error {
	was := c.Recipe
	if was == r {
		return nil
	}
	a, _ := json.Marshal(was)
	b, _ := json.Marshal(r)
	return fmt.Errorf("%w: it is of %s, now asked for is %s: use the same options, or another file", ErrCheckpointMismatch, a, b)
}

// name is the run's name when none is given: equal recipes have equal names.
func (r Recipe) name() string {
	b, _ := json.Marshal(r) // numbers and strings only: it cannot fail
	return "meter-" + ota.DigestOf(b).Short()
}
