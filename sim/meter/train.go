package meter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/nn"
)

// TrainOptions say what to train. Zero fields take the default in brackets.
type TrainOptions struct {
	Data      *digits.Digits // needed
	Seed      uint64
	Arch      nn.Arch   // [nn.Default]
	Normalise Normalise // [MNIST]
	Epochs    int       // passes over the training digits [1]
	Steps     int       // optimiser steps; overrides Epochs when not 0
	Batch     int       // images in a step [32]
	Rate      float64   // of Adam at its height; it falls to 0 along a cosine [0.006]
	Workers   int       // goroutines [2]; no influence on the result
	Run       string    // name of the run [made from the options and the data]

	// Checkpoint is a file that holds the state of the training. When it is
	// there, training goes on from it; it is written every CheckpointEvery
	// steps [500], when ctx ends, and at the end.
	Checkpoint      string
	CheckpointEvery int

	// Progress is called after every step, on the calling goroutine.
	Progress func(Progress)
}

// Progress is where a training stands.
type Progress struct {
	Step, Steps int
	Loss        float64 // of this step's batch
}

// Metrics say how a training went.
type Metrics struct {
	Steps    int           // steps in all
	Resumed  int           // the step that it went on from, 0 for a fresh start
	Images   int           // images seen by this process
	Loss     float64       // of the last batch of this process
	Accuracy float64       // on the test digits
	Elapsed  time.Duration // of this process, with the test
}

func (o TrainOptions) withDefaults() (TrainOptions, error) {
	o.Arch = cmp.Or(o.Arch, nn.Default())
	o.Normalise = cmp.Or(o.Normalise, MNIST())
	o.Epochs, o.Batch = cmp.Or(o.Epochs, 1), cmp.Or(o.Batch, 32)
	o.Rate, o.CheckpointEvery = cmp.Or(o.Rate, 0.006), cmp.Or(o.CheckpointEvery, 500)
	if o.Data == nil || len(o.Data.Train.Images) == 0 || len(o.Data.Test.Images) == 0 {
		return o, fmt.Errorf("%w: no digits to train on", ErrBadOptions)
	}
	n := len(o.Data.Train.Images)
	if o.Batch < 1 || o.Batch > n || o.Epochs < 1 || o.Steps < 0 || o.CheckpointEvery < 1 || !(o.Rate > 0 && o.Rate < 1) {
		return o, fmt.Errorf("%w: batch %d (1..%d), epochs %d, steps %d, checkpoint every %d, rate %v (above 0, below 1)",
			ErrBadOptions, o.Batch, n, o.Epochs, o.Steps, o.CheckpointEvery, o.Rate)
	}
	o.Steps = cmp.Or(o.Steps, o.Epochs*(n/o.Batch))
	if o.Arch.Side != digits.Side {
		return o, fmt.Errorf("%w: a network for images of side %d", ErrBadOptions, o.Arch.Side)
	}
	return o, cmp.Or(o.Arch.Validate(), o.Normalise.validate())
}

// Train trains a model. When ctx ends it writes the checkpoint, if one is
// asked for, and returns an error that wraps ctx's.
func Train(ctx context.Context, o TrainOptions) (*Model, Metrics, error) {
	start := time.Now()
	o, err := o.withDefaults()
	if err != nil {
		return nil, Metrics{}, err
	}
	c, err := begin(o)
	if err != nil {
		return nil, Metrics{}, err
	}
	met := Metrics{Steps: o.Steps, Resumed: c.Step}
	tr, err := nn.NewTrainer(o.Arch, c.Params, nn.Adam{M: c.M, V: c.V, Step: c.Step})
	if err != nil {
		return nil, Metrics{}, err
	}
	tr.Workers = o.Workers
	if met.Images, met.Loss, err = run(ctx, o, c, tr); err != nil {
		return nil, met, err
	}
	m := &Model{Arch: o.Arch, Params: c.Params, Normalise: o.Normalise, Run: c.Run, Dataset: c.Recipe.Dataset, Seed: o.Seed, Steps: o.Steps}
	if met.Accuracy, err = m.Accuracy(&o.Data.Test); err != nil {
		return nil, met, err
	}
	met.Elapsed = time.Since(start)
	return m, met, nil
}

// begin reads the checkpoint, or makes the state of step 0.
func begin(o TrainOptions) (*Checkpoint, error) {
	rng := rand.NewPCG(o.Seed, 0x6d65746572)
	c := &Checkpoint{Recipe: Recipe{Arch: o.Arch, Normalise: o.Normalise, Seed: o.Seed, Batch: o.Batch,
		Rate: o.Rate, Steps: o.Steps, Dataset: o.Data.Digest()}}
	c.Run = cmp.Or(o.Run, c.Recipe.name())
	if o.Checkpoint != "" {
		old, err := ReadCheckpoint(o.Checkpoint)
		switch {
		case err == nil:
			if err := old.fits(c.Recipe); err != nil {
				return nil, fmt.Errorf("resume from %s: %w", o.Checkpoint, err)
			}
			return old, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	c.Params = nn.InitParams(o.Arch, rand.New(rng))
	c.M, c.V = make([]float32, len(c.Params)), make([]float32, len(c.Params))
	state, err := rng.MarshalBinary()
	c.RNG = state
	return c, err
}

// run takes the steps that are left and keeps c, whose slices the trainer
// works on, up to date.
func run(ctx context.Context, o TrainOptions, c *Checkpoint, tr *nn.Trainer) (images int, loss float64, err error) {
	set, table := &o.Data.Train, o.Normalise.table()
	perEpoch := len(set.Images) / o.Batch
	var rng rand.PCG
	if err := rng.UnmarshalBinary(c.RNG); err != nil {
		return 0, 0, fmt.Errorf("%w: random state: %v", ErrBadCheckpoint, err)
	}
	var order []int
	for c.Step < o.Steps {
		if err := ctx.Err(); err != nil {
			return images, loss, stopped(o, c, err)
		}
		if at := c.Step % perEpoch; order == nil || at == 0 {
			// c.RNG is the state before this epoch's shuffle, so that a resumed
			// run draws the same order again.
			if c.RNG, err = rng.MarshalBinary(); err != nil {
				return images, loss, err
			}
			order = rand.New(&rng).Perm(len(set.Images))
		}
		batch := order[c.Step%perEpoch*o.Batch:][:o.Batch]
		loss = tr.Step(nn.Batch{Len: o.Batch, At: func(i int, dst []float32) int {
			for j, v := range &set.Images[batch[i]] {
				dst[j] = table[v]
			}
			return int(set.Labels[batch[i]])
		}}, rate(o, c.Step))
		c.Step++
		images += o.Batch
		if c.Step%perEpoch == 0 {
			if c.RNG, err = rng.MarshalBinary(); err != nil {
				return images, loss, err
			}
		}
		if o.Progress != nil {
			o.Progress(Progress{Step: c.Step, Steps: o.Steps, Loss: loss})
		}
		if o.Checkpoint != "" && (c.Step%o.CheckpointEvery == 0 || c.Step == o.Steps) {
			if err := c.Write(o.Checkpoint); err != nil {
				return images, loss, err
			}
		}
	}
	return images, loss, nil
}

func stopped(o TrainOptions, c *Checkpoint, cause error) error {
	if o.Checkpoint == "" {
		return fmt.Errorf("training stopped at step %d of %d: %w", c.Step, o.Steps, cause)
	}
	if err := c.Write(o.Checkpoint); err != nil {
		return fmt.Errorf("training stopped at step %d of %d: %w", c.Step, o.Steps, errors.Join(cause, err))
	}
	return fmt.Errorf("training stopped at step %d of %d, to go on from %s: %w", c.Step, o.Steps, o.Checkpoint, cause)
}

// rate rises over the first twentieth of the steps and falls along a cosine.
func rate(o TrainOptions, step int) float64 {
	warm := max(1, o.Steps/20)
	if step < warm {
		return o.Rate * float64(step+1) / float64(warm)
	}
	return o.Rate / 2 * (1 + math.Cos(math.Pi*float64(step-warm)/float64(max(1, o.Steps-warm))))
}

// Recipe is what a training depends on.
type Recipe struct {
	Arch      nn.Arch    `json:"arch"`
	Normalise Normalise  `json:"normalise"`
	Seed      uint64     `json:"seed"`
	Batch     int        `json:"batch"`
	Rate      float64    `json:"rate"`
	Steps     int        `json:"steps"`
	Dataset   ota.Digest `json:"dataset"`
}
