package trtexec

import (
	_ "embed" // the tables
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

//go:embed networks.tsv
var networksTSV string

//go:embed published.tsv
var publishedTSV string

// MetaNetwork is the metadata key by which an ONNX file says whose times it
// takes; without it the file's name does.
const MetaNetwork = "skein.sim.network"

// network is what one inference costs.
type network struct {
	name, precision, place string
	cost                   time.Duration // on an Orin Nano in its 15W mode
	load                   jetson.Load
}

func rows(text string, columns int) (out [][]string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if cells := strings.Split(line, "\t"); len(cells) == columns {
			out = append(out, cells)
		}
	}
	return out
}

func float(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0 // a dash: not known
	}
	return v
}

// find returns the costs of a network by name.
func find(name, precision, place string) (network, bool) {
	for _, c := range rows(networksTSV, 8) {
		if c[0] == name && c[1] == precision && c[2] == place {
			return network{c[0], c[1], c[2], time.Duration(float(c[3]) * float64(time.Millisecond)),
				jetson.Load{GPU: float(c[4]), CPU: float(c[5]), EMC: float(c[6]), DLA: float(c[7])}}, true
		}
	}
	return network{}, false
}

// launch is what an inference costs however small its network is.
const launch = 100 * time.Microsecond

// costOf is the network of an ONNX file: one of the table, else by what it
// computes, as the meter model does.
func costOf(m *onnx.Model, path, precision, place string, macs int64) network {
	name := m.Meta(MetaNetwork)
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(path), ".onnx")
	}
	if n, ok := find(name, precision, place); ok {
		return n
	}
	share := map[string]float64{"fp32": 1, "fp16": 0.62, "int8": 0.5, "best": 0.5}[precision]
	if share == 0 {
		share = 1
	}
	if place == "dla" {
		share *= 1.3
	}
	return network{name: name, precision: precision, place: place, cost: launch + time.Duration(4e6*share*float64(macs)/600_000),
		load: jetson.Load{GPU: 0.6, CPU: 0.2, EMC: 0.5}}
}

// Row is one published figure and what the models make of it.
type Row struct {
	Board, Mode, Network, Precision, Place, Source string
	PublishedMs, PublishedWatts                    float64 // 0: not published
	Ms, Watts                                      float64
}

// Published compares the models with every published figure. measure runs a
// network on a board in a mode and returns milliseconds and watts.
func Published(measure func(board *jetson.Model, mode, network, precision, place string) (ms, watts float64, err error)) ([]Row, error) {
	var out []Row
	for _, c := range rows(publishedTSV, 8) {
		r := Row{Board: c[0], Mode: c[1], Network: c[2], Precision: c[3], Place: c[4], PublishedMs: float(c[5]), PublishedWatts: float(c[6]), Source: c[7]}
		m, err := jetson.Lookup(r.Board)
		if err != nil {
			return nil, err
		}
		if r.Ms, r.Watts, err = measure(m, r.Mode, r.Network, r.Precision, r.Place); err != nil {
			return nil, fmt.Errorf("%s in %s: %s %s: %w", r.Board, r.Mode, r.Network, r.Precision, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Off is how far the model is from the published figures at most, as a share.
func (r Row) Off() float64 {
	off := 0.0
	if r.PublishedMs > 0 {
		off = math.Abs(r.Ms/r.PublishedMs - 1)
	}
	if r.PublishedWatts > 0 {
		off = max(off, math.Abs(r.Watts/r.PublishedWatts-1))
	}
	return off
}

// watts is the power of the module under a load, once it has settled.
func watts(m *jetson.Model, mode string, load jetson.Load) (float64, error) {
	b, err := jetson.New(m, jetson.Options{Seed: 1, Mode: mode})
	if err != nil {
		return 0, err
	}
	b.Step(5*time.Second, load)
	return b.Watts(), nil
}
