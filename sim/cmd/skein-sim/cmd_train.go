package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
)

// variants are the exports that the demo and the scenarios ship.
var variants = map[string]meter.ExportOptions{
	"honest": {},
	"wrong":  {Normalise: meter.DividedTwice()},
	"slow":   {Redundant: 12},
}

// trained is what train tells about its result.
type trained struct {
	Model    string  `json:"model"`
	Golden   string  `json:"golden"`
	Variant  string  `json:"variant"`
	Seed     uint64  `json:"seed"`
	Steps    int     `json:"steps"`
	Resumed  int     `json:"resumed_at_step"`
	Loss     float64 `json:"loss"`
	Accuracy float64 `json:"test_accuracy"`
	Seconds  float64 `json:"seconds"`
	Bytes    int     `json:"model_bytes"`
}

func (a *app) trainCmd() *cobra.Command {
	var (
		o       meter.TrainOptions
		out     string
		data    string
		variant string
		version int64
	)
	cmd := &cobra.Command{
		Use:   "train",
		Short: "train the meter model and write model.onnx and golden.json",
		Long: `train trains the model of the demo on the MNIST digits, and writes model.onnx and
the golden set golden.json that proves it on a device. Equal seeds give equal
files. With --checkpoint an interrupted training goes on where it was.

Variants: honest; wrong (the classic double division of pixels: loads, answers,
fails its golden set); slow (right to the bit, about nine times the work).`,
		Example: `  skein-sim train --seed 1 --out model
  skein-sim train --out bad --variant wrong --checkpoint meter.ckpt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			export, ok := variants[variant]
			if !ok {
				return usageError{fmt.Errorf("--variant %q: want honest, wrong or slow", variant)}
			}
			ctx := cmd.Context()
			d, err := digits.Load(ctx, data)
			if err != nil {
				return err
			}
			o.Data = d
			var last time.Time
			o.Progress = func(p meter.Progress) {
				if time.Since(last) > time.Second || p.Step == p.Steps {
					last = time.Now()
					fmt.Fprintf(a.stderr, "step %d of %d, loss %.4f\n", p.Step, p.Steps, p.Loss)
				}
			}
			model, m, err := meter.Train(ctx, o)
			if err != nil {
				return err
			}
			export.Version = version
			r := trained{Variant: variant, Seed: o.Seed, Steps: m.Steps, Resumed: m.Resumed, Loss: m.Loss, Accuracy: m.Accuracy, Seconds: m.Elapsed.Seconds()}
			if err := writeModel(out, model, export, d, &r); err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %d bytes, %s model, %.2f %% of the test digits right before export, %d steps in %.1f s\n%s: golden set\n",
					r.Model, r.Bytes, r.Variant, 100*r.Accuracy, r.Steps, r.Seconds, r.Golden)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", ".", "folder for model.onnx and golden.json")
	f.Uint64Var(&o.Seed, "seed", 1, "of weights, order of the digits, and golden cases")
	f.StringVar(&o.Checkpoint, "checkpoint", "", "file that keeps the state of the training")
	f.StringVar(&variant, "variant", "honest", "honest, wrong or slow")
	f.IntVar(&o.Steps, "steps", 0, "optimiser steps; 0 means one pass over the digits")
	f.Int64Var(&version, "model-version", 1, "version number written into the model")
	f.StringVar(&data, "digits", "", "folder of the MNIST files; empty looks in the module cache")
	return cmd
}

func writeModel(dir string, m *meter.Model, export meter.ExportOptions, d *digits.Digits, r *trained) error {
	onnx, err := m.ONNX(export)
	if err != nil {
		return err
	}
	golden, err := m.Golden(meter.GoldenOptions{Set: &d.Test, Seed: m.Seed})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(golden)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder for the model: %w", err)
	}
	r.Model, r.Golden, r.Bytes = filepath.Join(dir, "model.onnx"), filepath.Join(dir, "golden.json"), len(onnx)
	if err := os.WriteFile(r.Model, onnx, 0o644); err != nil {
		return fmt.Errorf("write the model: %w", err)
	}
	if err := os.WriteFile(r.Golden, raw, 0o644); err != nil {
		return fmt.Errorf("write the golden set: %w", err)
	}
	return nil
}
