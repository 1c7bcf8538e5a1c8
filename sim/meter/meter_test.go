package meter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/interp"
	"github.com/skein-fleet/skein/sim/meter/nn"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

var loadOnce = sync.OnceValues(func() (*digits.Digits, error) { return digits.Load(context.Background(), "") })

// load returns the digits, which are read once and never changed.
func load(t testing.TB) *digits.Digits {
	t.Helper()
	d, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// few is a data set that trains in a moment.
func few(d *digits.Digits, train, test int) *digits.Digits {
	return &digits.Digits{
		Train: digits.Set{Images: d.Train.Images[:train], Labels: d.Train.Labels[:train]},
		Test:  digits.Set{Images: d.Test.Images[:test], Labels: d.Test.Labels[:test]},
	}
}

// TestTrainReachesTheGoal trains the demo's model on all digits and holds it
// and its variants to what the demo tells of them.
func TestTrainReachesTheGoal(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about 8 s of two cores")
	}
	d := load(t)
	m, met, err := Train(t.Context(), TrainOptions{Data: d, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", met)
	if met.Accuracy < 0.97 {
		t.Errorf("accuracy %.4f: want 0.97", met.Accuracy)
	}
	wrong := *m
	wrong.Normalise = DividedTwice()
	if got, err := wrong.Accuracy(&d.Test); err != nil || got > 0.3 {
		t.Errorf("with the wrong normalisation: accuracy %.4f, %v: it would not be caught", got, err)
	}
	for _, drift := range digits.Drifts() {
		bad := digits.Set{Labels: d.Test.Labels[:2000]}
		for i, img := range d.Test.Images[:2000] {
			bad.Images = append(bad.Images, drift.Apply(img, 1, uint64(i)))
		}
		got, err := m.Accuracy(&bad)
		if err != nil || got > met.Accuracy-0.02 {
			t.Errorf("%s at full severity: accuracy %.4f, %v: no drift to be seen", drift, got, err)
		}
		t.Logf("%s: accuracy %.4f", drift, got)
	}
}

func TestResumeIsBitForBit(t *testing.T) {
	d := few(load(t), 300, 50)
	o := TrainOptions{Data: d, Seed: 7, Batch: 20, Steps: 40, // an epoch is 15 steps
		Arch: nn.Arch{Side: 28, Kernel: 3, Conv1: 2, Conv2: 3, Classes: 10}}
	want, _, err := Train(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, cuts := range [][]int{{1}, {15}, {16}, {7, 15, 29, 30, 39}, {40}} {
		o := o
		o.Checkpoint = filepath.Join(t.TempDir(), "ckpt")
		o.CheckpointEvery = 11
		for i, cut := range cuts {
			ctx, cancel := context.WithCancel(t.Context())
			o.Workers = 1 + i%3
			o.Progress = func(p Progress) {
				if p.Step == cut {
					cancel()
				}
			}
			if _, _, err := Train(ctx, o); cut < o.Steps && !errors.Is(err, context.Canceled) {
				t.Fatalf("cut at %d: got %v", cut, err)
			}
			cancel()
		}
		o.Progress = nil
		got, met, err := Train(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if met.Resumed != cuts[len(cuts)-1] {
			t.Errorf("went on from step %d: want %d", met.Resumed, cuts[len(cuts)-1])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("cut at %v: another model:\n%s", cuts, diff)
		}
	}
}

func TestCheckpointMustFit(t *testing.T) {
	d := few(load(t), 100, 20)
	o := TrainOptions{Data: d, Batch: 10, Steps: 3, Checkpoint: filepath.Join(t.TempDir(), "ckpt")}
	if _, _, err := Train(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Seed = 2
	if _, _, err := Train(t.Context(), other); !errors.Is(err, ErrCheckpointMismatch) {
		t.Errorf("another seed: got %v", err)
	}
	other = o
	other.Data = few(load(t), 99, 20)
	if _, _, err := Train(t.Context(), other); !errors.Is(err, ErrCheckpointMismatch) {
		t.Errorf("other data: got %v", err)
	}
	b, err := os.ReadFile(o.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 40, len(b) / 2, len(b) - 1} {
		bad := append([]byte(nil), b...)
		bad[at] ^= 1
		if err := os.WriteFile(o.Checkpoint, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Train(t.Context(), o); !errors.Is(err, ErrBadCheckpoint) {
			t.Errorf("byte %d flipped: got %v", at, err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	d := few(load(t), 100, 20)
	for name, o := range map[string]TrainOptions{
		"no data": {}, "batch": {Data: d, Batch: 101}, "rate": {Data: d, Batch: 10, Rate: 2},
		"scale": {Data: d, Batch: 10, Normalise: Normalise{Mean: 1}},
		"side":  {Data: d, Batch: 10, Arch: nn.Arch{Side: 20, Kernel: 3, Conv1: 1, Conv2: 1, Classes: 10}},
	} {
		if _, _, err := Train(t.Context(), o); !errors.Is(err, ErrBadOptions) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

var trainOnce = sync.OnceValues(func() (*Model, error) {
	d, err := loadOnce()
	if err != nil {
		return nil, err
	}
	m, met, err := Train(context.Background(), TrainOptions{Data: few(d, 6000, 500), Seed: 3, Steps: 110})
	if err == nil && met.Accuracy < 0.85 {
		err = fmt.Errorf("accuracy %.3f after a short training", met.Accuracy)
	}
	return m, err
})

// trained returns a small but working model, which is made once.
func trained(t testing.TB) (*Model, *digits.Digits) {
	t.Helper()
	m, err := trainOnce()
	if err != nil {
		t.Fatal(err)
	}
	return m, load(t)
}

func session(t testing.TB, m *Model, o ExportOptions) *interp.Session {
	t.Helper()
	b, err := m.ONNX(o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := interp.Load(b, interp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answers runs images through the interpreter in one batch.
func answers(t testing.TB, s *interp.Session, images []digits.Image) ([]float32, interp.Stats) {
	t.Helper()
	in := interp.Tensor{Name: InputName, Shape: []int64{int64(len(images)), 1, 28, 28}}
	for i := range images {
		in.Data = images[i].Floats(in.Data)
	}
	out, st, err := s.Run(t.Context(), []interp.Tensor{in})
	if err != nil {
		t.Fatal(err)
	}
	return out[0].Data, st
}

func TestExportedModelAnswersAsTheTrainedOne(t *testing.T) {
	m, d := trained(t)
	images := d.Test.Images[:64]
	got, honest := answers(t, session(t, m, ExportOptions{}), images)
	var want []float32
	for i := range images {
		l, err := m.Logits(&images[i])
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, l...)
	}
	for i := range want {
		if diff := got[i] - want[i]; diff > 1e-4 || diff < -1e-4 {
			t.Fatalf("logit %d: interpreter %v, trainer %v", i, got[i], want[i])
		}
	}
	slow, work := answers(t, session(t, m, ExportOptions{Redundant: 12}), images)
	if diff := cmp.Diff(got, slow); diff != "" {
		t.Errorf("redundant layers changed the answers:\n%s", diff)
	}
	if work.MACs < 5*honest.MACs {
		t.Errorf("12 redundant layers make %d multiply-accumulates of %d", work.MACs, honest.MACs)
	}
	bad, _ := answers(t, session(t, m, ExportOptions{Normalise: DividedTwice()}), images)
	right := 0
	for i := range images {
		if Label(bad[i*10:(i+1)*10]) == int(d.Test.Labels[i]) {
			right++
		}
	}
	if right > len(images)/3 {
		t.Errorf("the wrong normalisation still gets %d of %d right", right, len(images))
	}
}

func TestExportNamesItsOrigin(t *testing.T) {
	m, _ := trained(t)
	b, err := m.ONNX(ExportOptions{Version: 3, Metadata: map[string]string{"stage": "canary"}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := onnx.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if f.Meta(MetaRun) != m.Run || f.Meta(MetaDataset) != string(m.Dataset) || f.Meta("stage") != "canary" || f.Version != 3 {
		t.Errorf("metadata %v, version %d", f.Metadata, f.Version)
	}
	if _, err := m.ONNX(ExportOptions{Metadata: map[string]string{MetaRun: "forged"}}); !errors.Is(err, ErrBadOptions) {
		t.Errorf("replacing the run: got %v", err)
	}
	if again, _ := m.ONNX(ExportOptions{Version: 3, Metadata: map[string]string{"stage": "canary"}}); string(again) != string(b) {
		t.Error("two exports differ")
	}
}

func TestLinear(t *testing.T) {
	b, err := Linear([]float32{1, 2, 3, 4, 5, 6}, []float32{10, 20}, 3, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := interp.Load(b, interp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := s.Run(t.Context(), []interp.Tensor{{Name: InputName, Shape: []int64{2, 3}, Data: []float32{1, 0, 0, 1, 1, 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]float32{11, 24, 16, 35}, out[0].Data); diff != "" {
		t.Error(diff)
	}
	if _, err := Linear([]float32{1}, []float32{1}, 2, 1, nil); !errors.Is(err, ErrBadOptions) {
		t.Errorf("a weight short: got %v", err)
	}
}

func FuzzDecodeCheckpoint(f *testing.F) {
	c := &Checkpoint{Recipe: Recipe{Arch: nn.Arch{Side: 10, Kernel: 3, Conv1: 1, Conv2: 1, Classes: 2}, Steps: 9}, Step: 4, RNG: []byte("x")}
	n := c.Recipe.Arch.Size()
	c.Params, c.M, c.V = make([]float32, n), make([]float32, n), make([]float32, n)
	b, err := c.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(ckptMagic))
	f.Add([]byte(strings.Repeat(ckptMagic, 9)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCheckpoint(b)
		if err != nil {
			if !errors.Is(err, ErrBadCheckpoint) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if _, err := c.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkInfer(b *testing.B) {
	m, d := trained(b)
	for _, v := range []struct {
		name string
		o    ExportOptions
	}{{"v1", ExportOptions{}}, {"v2b", ExportOptions{Redundant: 12}}} {
		s := session(b, m, v.o)
		in := []interp.Tensor{{Name: InputName, Shape: []int64{1, 1, 28, 28}, Data: d.Test.Images[0].Floats(nil)}}
		b.Run(v.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := s.Run(b.Context(), in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
