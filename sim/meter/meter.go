// Package meter owns the model of the demo, which reads the digits of utility
// meters: how it is trained, checkpointed, written as ONNX and given a golden
// set. Training is a pure function of its options and data: equal ones give
// equal bits on one processor family, whatever the number of goroutines and
// however often it was stopped and resumed. The model takes raw pixels and
// normalises them itself, so that a wrong normalisation is a fault of the
// model file, as in the field. The packages of sim import it.
package meter

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/nn"
)

// Names of the exported model and of its tensors.
const (
	ModelName  = "meter"
	InputName  = "input"
	OutputName = "logits"
)

// ErrBadOptions is returned for options that make no sense.
var ErrBadOptions = errors.New("bad options")

// Normalise is the first step of the model: (pixel - Mean) · Scale.
type Normalise struct {
	Mean  float32 `json:"mean"`
	Scale float32 `json:"scale"`
}

// MNIST is the normalisation that the model is trained with: the mean and one
// over the standard deviation of the training pixels.
func MNIST() Normalise { return Normalise{Mean: 33.318, Scale: 1 / 78.567} }

// DividedTwice is a classic mistake: the constants of pixels in 0..255, on
// pixels that were divided by 255 before. Every digit looks alike to the
// network. The demo ships it as the bad version v2: it loads, answers in time,
// and is wrong.
func DividedTwice() Normalise {
	n := MNIST()
	return Normalise{Mean: n.Mean * 255, Scale: n.Scale / 255}
}

func (n Normalise) validate() error {
	for _, v := range []float64{float64(n.Mean), float64(n.Scale)} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%w: normalisation %+v", ErrBadOptions, n)
		}
	}
	if n.Scale == 0 {
		return fmt.Errorf("%w: a normalisation with scale 0 blinds the model", ErrBadOptions)
	}
	return nil
}

// table maps a pixel to what the network sees; it is computed as the exported
// graph computes it.
func (n Normalise) table() (t [256]float32) {
	for i := range t {
		t[i] = (float32(i) - n.Mean) * n.Scale
	}
	return t
}

// Model is a trained network and where it came from. It is read-only.
type Model struct {
	Arch      nn.Arch
	Params    []float32
	Normalise Normalise
	Run       string     // names the training run
	Dataset   ota.Digest // of the digits that it was trained on
	Seed      uint64
	Steps     int
}

// Logits returns the ten outputs for one image.
func (m *Model) Logits(img *digits.Image) ([]float32, error) {
	out, err := m.all([]digits.Image{*img}, 1)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Accuracy is the share of a set that the model reads right.
func (m *Model) Accuracy(s *digits.Set) (float64, error) {
	if len(s.Images) == 0 || len(s.Images) != len(s.Labels) {
		return 0, fmt.Errorf("%w: %d images and %d labels", ErrBadOptions, len(s.Images), len(s.Labels))
	}
	out, err := m.all(s.Images, 2)
	if err != nil {
		return 0, err
	}
	right := 0
	for i, logits := range out {
		if Label(logits) == int(s.Labels[i]) {
			right++
		}
	}
	return float64(right) / float64(len(out)), nil
}

// Label is the index of the greatest logit, the first of equals.
func Label(logits []float32) int {
	return slices.Index(logits, slices.Max(logits))
}

func (m *Model) all(images []digits.Image, workers int) ([][]float32, error) {
	out := make([][]float32, len(images))
	table := m.Normalise.table()
	var wg sync.WaitGroup
	for w := range workers {
		net, err := nn.NewNet(m.Arch, m.Params)
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			x := make([]float32, digits.Pixels)
			for i := w; i < len(images); i += workers {
				for j, v := range images[i] {
					x[j] = table[v]
				}
				out[i] = slices.Clone(net.Logits(x))
			}
		})
	}
	wg.Wait()
	return out, nil
}
