// Package plan is the engine file of virtual Jetsons. It owns the format and
// the rules by which a plan loads: on the SM and with the TensorRT that built it
// and nowhere else, as on real boards, with the error texts that TensorRT
// prints. The packages of sim import it.
//
// A plan is "ftrt", a serialization version, its whole length, a header in JSON
// and the ONNX file, with its weights at zero when they were stripped. Nothing
// but sim reads it.
package plan

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// Header says what a plan is bound to and how it was built.
type Header struct {
	TensorRT  string `json:"tensorrt"`
	SM        string `json:"sm"`
	Module    string `json:"module"`
	Mode      string `json:"mode"`
	Precision string `json:"precision"`
	Network   string `json:"network"` // whose published times it has
	DLA       bool   `json:"dla,omitempty"`
	Stripped  bool   `json:"stripped,omitempty"`
	// Tactics differ from build to build, and with them Speed, the time relative
	// to the usual one: builds are not reproducible.
	Tactics string  `json:"tactics"`
	Speed   float64 `json:"speed"`
}

// Plan is one engine.
type Plan struct {
	Header
	ONNX []byte
}

// Board is where a plan is loaded.
type Board struct{ TensorRT, SM, Module, Mode string }

const (
	magic   = "ftrt"
	fixed   = 4 + 4 + 8 + 4
	maxHead = 64 << 10
)

// Marshal writes a plan, with tactics of its own.
func (p Plan) Marshal() ([]byte, error) {
	var noise [16]byte
	if _, err := rand.Read(noise[:]); err != nil {
		return nil, fmt.Errorf("draw tactics: %w", err)
	}
	p.Tactics = hex.EncodeToString(noise[:])
	p.Speed = 1 + 0.03*(float64(noise[0])/255*2-1)
	if p.Stripped {
		stripped, err := strip(p.ONNX)
		if err != nil {
			return nil, err
		}
		p.ONNX = stripped
	}
	return write(p.Header, p.ONNX)
}

func write(h Header, model []byte) ([]byte, error) {
	head, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("write plan: %w", err)
	}
	b := []byte(magic)
	b = binary.LittleEndian.AppendUint32(b, uint32(Serialization(h.TensorRT)))
	b = binary.LittleEndian.AppendUint64(b, uint64(fixed+len(head)+len(model)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(head)))
	return append(append(b, head...), model...), nil
}

// strip zeroes the weights of a model.
func strip(raw []byte) ([]byte, error) {
	m, err := onnx.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("strip weights: %w", err)
	}
	for i := range m.Graph.Initializers {
		clear(m.Graph.Initializers[i].Floats)
	}
	return m.Marshal(), nil
}

// Refit returns the bytes of a stripped plan with the weights of an ONNX file.
func Refit(b, weights []byte) ([]byte, error) {
	stripped, err := strip(weights)
	if err != nil {
		return nil, err
	}
	var h Header
	if !Is(b) || len(b) < fixed || int(binary.LittleEndian.Uint32(b[16:])) > len(b)-fixed {
		return nil, errors.New("Engine deserialization failed: not a plan")
	}
	head := fixed + int(binary.LittleEndian.Uint32(b[16:]))
	if err := json.Unmarshal(b[fixed:head], &h); err != nil || !h.Stripped {
		return nil, errors.New("the plan is not a stripped one")
	}
	if string(stripped) != string(b[head:]) {
		return nil, errors.New("the ONNX file does not fit the plan")
	}
	h.Stripped = false
	return write(h, weights)
}

// Serialization is the number that a version writes into its plans; neighbours
// may share one.
func Serialization(trt string) int {
	for _, v := range []struct {
		prefix string
		number int
	}{{"10.16.", 246}, {"10.13.", 244}, {"10.7.", 240}, {"10.", 239}, {"8.6.", 236}, {"8.5.", 228}, {"8.4.", 213}, {"8.", 205}, {"7.", 96}} {
		if strings.HasPrefix(trt, v.prefix) {
			return v.number
		}
	}
	return 0
}

// LoadError is what TensorRT prints when a plan does not load. Crash says that
// the process does not survive it.
type LoadError struct {
	Lines []string
	Crash bool
}

func (e *LoadError) Error() string {
	if len(e.Lines) == 0 {
		return "Segmentation fault"
	}
	return e.Lines[0]
}

const followUp = "4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)"

func refuse(format string, args ...any) error {
	return &LoadError{Lines: []string{fmt.Sprintf(format, args...), followUp}}
}

// Is reports whether b begins as a plan does.
func Is(b []byte) bool { return strings.HasPrefix(string(b[:min(len(b), len(magic))]), magic) }

// Load reads a plan on a board. The error is a LoadError. The warning is the
// one of TensorRT for a plan of another module or power mode, empty for none.
func Load(b []byte, on Board) (p Plan, warning string, err error) {
	if !Is(b) {
		return Plan{}, "", refuse("1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)")
	}
	cut := &LoadError{Crash: true} // without a word, as on real boards
	if len(b) < fixed {
		return Plan{}, "", cut
	}
	version, total, head := int(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:])
	if total != uint64(len(b)) || head > maxHead || int(head) > len(b)-fixed {
		return Plan{}, "", cut
	}
	if err := json.Unmarshal(b[fixed:fixed+head], &p.Header); err != nil {
		return Plan{}, "", cut
	}
	p.ONNX = b[fixed+head:]
	if err := p.fits(version, on); err != nil {
		return Plan{}, "", err
	}
	if p.Module != on.Module || p.Mode != on.Mode {
		verb := "recommended and is likely to affect performance or even cause errors."
		if strings.HasPrefix(on.TensorRT, "10.") {
			verb = "supported and is likely to affect performance or even cause errors or deadlock."
		}
		warning = "Using an engine plan file across different models of devices is not " + verb
	}
	return p, warning, nil
}

// Model returns the ONNX file in a plan, and what is no plan as it is.
func Model(b []byte) []byte {
	if !Is(b) || len(b) < fixed {
		return b
	}
	return b[min(len(b), fixed+int(binary.LittleEndian.Uint32(b[16:]))):]
}

// fits asks in the order of TensorRT: its version first.
func (p *Plan) fits(version int, on Board) error {
	if p.TensorRT != on.TensorRT {
		ours := Serialization(on.TensorRT)
		if ours < 213 || ours == version {
			return refuse("6: The engine plan file is not compatible with this version of TensorRT, expecting library version %s got %s, please rebuild.", on.TensorRT, p.TensorRT)
		}
		name := "kSERIALIZATION_VERSION"
		if ours < 230 {
			name = "serializationVersion"
		}
		return refuse("1: [stdArchiveReader.cpp::StdArchiveReader::40] Error Code 1: Serialization (Serialization assertion stdVersionRead == %s failed.Version tag does not match. Note: Current Version: %d, Serialized Engine Version: %d)", name, ours, version)
	}
	if p.SM != on.SM {
		return refuse("6: The engine plan file is generated on an incompatible device, expecting compute %s got compute %s, please rebuild.", on.SM, p.SM)
	}
	return nil
}
