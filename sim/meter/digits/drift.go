package digits

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// Drift is something that happens to a camera.
type Drift string

// The drifts. Severity 0 leaves the image as it is and 1 is about the worst
// that a person still reads.
const (
	Blur     Drift = "blur"     // a lens out of focus: Gaussian, up to 2.5 pixels
	Noise    Drift = "noise"    // a sensor that is hot or starved of light: Gaussian, up to 100 of 255
	Darkness Drift = "darkness" // the lamp fails: down to a tenth of the contrast
	Rotation Drift = "rotation" // the mount slips: up to 60 degrees
)

// Drifts lists them all.
func Drifts() []Drift { return []Drift{Blur, Noise, Darkness, Rotation} }

// ErrBadDrift is returned for a drift that does not exist.
var ErrBadDrift = errors.New("unknown drift")

// ParseDrift checks a name.
func ParseDrift(s string) (Drift, error) {
	if d := Drift(s); slices.Contains(Drifts(), d) {
		return d, nil
	}
	names := make([]string, 0, 4)
	for _, d := range Drifts() {
		names = append(names, string(d))
	}
	return "", fmt.Errorf("%w %q: want one of %s", ErrBadDrift, s, strings.Join(names, ", "))
}

// Apply returns m as the drifted camera sees it. Severity is clamped to 0..1.
// It is a pure function: equal arguments give equal images. Only noise uses
// the seed.
func (d Drift) Apply(m Image, severity float64, seed uint64) Image {
	severity = min(max(severity, 0), 1)
	if severity == 0 || math.IsNaN(severity) {
		return m
	}
	switch d {
	case Blur:
		return blur(m, 2.5*severity)
	case Noise:
		return noise(m, 100*severity, seed)
	case Darkness:
		gain := 1 - 0.9*severity
		for i, v := range m {
			m[i] = toByte(float64(v) * gain)
		}
	case Rotation:
		return rotate(m, severity*math.Pi/3)
	}
	return m
}

func toByte(v float64) byte { return byte(min(max(math.Round(v), 0), 255)) }

func blur(m Image, sigma float64) Image {
	radius := int(math.Ceil(3 * sigma))
	weights, sum := make([]float64, 2*radius+1), 0.0
	for i := range weights {
		d := float64(i - radius)
		weights[i] = math.Exp(-d * d / (2 * sigma * sigma))
		sum += weights[i]
	}
	var rows [Pixels]float64
	for y := range Side {
		for x := range Side {
			var s float64
			for i, w := range weights {
				if at := x + i - radius; at >= 0 && at < Side {
					s += w * float64(m[y*Side+at])
				}
			}
			rows[y*Side+x] = s / sum
		}
	}
	var out Image
	for y := range Side {
		for x := range Side {
			var s float64
			for i, w := range weights {
				if at := y + i - radius; at >= 0 && at < Side {
					s += w * rows[at*Side+x]
				}
			}
			out[y*Side+x] = toByte(s / sum)
		}
	}
	return out
}

func noise(m Image, sigma float64, seed uint64) Image {
	rng := rand.New(rand.NewPCG(seed, 0x6e6f697365))
	for i, v := range m {
		m[i] = toByte(float64(v) + rng.NormFloat64()*sigma)
	}
	return m
}

// rotate turns the image about its middle, with bilinear sampling.
func rotate(m Image, angle float64) Image {
	const mid = (Side - 1) / 2.0
	sin, cos := math.Sincos(angle)
	at := func(y, x int) float64 {
		if y < 0 || y >= Side || x < 0 || x >= Side {
			return 0
		}
		return float64(m[y*Side+x])
	}
	var out Image
	for y := range Side {
		for x := range Side {
			dy, dx := float64(y)-mid, float64(x)-mid
			sy, sx := mid+dy*cos-dx*sin, mid+dx*cos+dy*sin
			fy, fx := math.Floor(sy), math.Floor(sx)
			iy, ix, wy, wx := int(fy), int(fx), sy-fy, sx-fx
			out[y*Side+x] = toByte(at(iy, ix)*(1-wy)*(1-wx) + at(iy, ix+1)*(1-wy)*wx +
				at(iy+1, ix)*wy*(1-wx) + at(iy+1, ix+1)*wy*wx)
		}
	}
	return out
}
