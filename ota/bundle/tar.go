package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const block = 512

// ending closes a tar archive.
var ending [2 * block]byte

func padded(n int64) int64 { return (n + block - 1) / block * block }

// header is the tar header of a plain file, always the same for the same file.
func header(name string, size int64) []byte {
	h := make([]byte, block)
	copy(h[0:100], name)
	copy(h[100:108], "0000644\x00")
	copy(h[108:116], "0000000\x00")
	copy(h[116:124], "0000000\x00")
	if size < 1<<33 {
		copy(h[124:136], fmt.Sprintf("%011o\x00", size))
	} else { // more than eleven octal digits can say: base 256, as GNU tar has it
		h[124] = 0x80
		binary.BigEndian.PutUint64(h[128:136], uint64(size))
	}
	copy(h[136:148], "00000000000\x00")
	h[156] = '0'
	copy(h[257:265], "ustar\x0000")
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", checksum(h)))
	return h
}

func checksum(h []byte) (sum int64) {
	for i, c := range h {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	return sum
}

// kinds are what a tar may hold and a bundle never does.
var kinds = map[byte]string{
	'1': "hard link", '2': "symbolic link", '3': "device node", '4': "device node", '5': "folder", '6': "named pipe", '7': "reserved file",
	'x': "extended header", 'g': "extended header", 'L': "long name", 'K': "long link", 'S': "sparse file",
}

// compressed are the beginnings of files that would have to be expanded first.
var compressed = map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "\xfd7zXZ": "xz", "BZh": "bzip2", "PK\x03\x04": "zip", "\x04\x22\x4d\x18": "lz4"}

// readHeader reads the header at an offset; end is true at the end of the archive.
func readHeader(r io.ReaderAt, at, size int64) (name string, length int64, end bool, err error) {
	h := make([]byte, block)
	if at+block > size {
		return "", 0, false, fmt.Errorf("%w: it ends at byte %d, where a file should begin", ErrTruncated, size)
	}
	if _, err := r.ReadAt(h, at); err != nil {
		return "", 0, false, readError(at, err)
	}
	if at == 0 {
		for magic, what := range compressed {
			if strings.HasPrefix(string(h), magic) {
				return "", 0, false, fmt.Errorf("%w: it is compressed with %s, bundles are not: nothing is expanded here", ErrNotBundle, what)
			}
		}
	}
	if bytes.Equal(h, ending[:block]) {
		return "", 0, true, nil
	}
	sum, err := octal(h[148:156])
	if err != nil || sum != checksum(h) || string(h[257:262]) != "ustar" {
		return "", 0, false, fmt.Errorf("%w: byte %d is not the beginning of a file in it", ErrNotBundle, at)
	}
	name = text(h[0:100])
	if prefix := text(h[345:500]); prefix != "" && h[262] == 0 {
		name = prefix + "/" + name
	}
	if kind := h[156]; kind != '0' && kind != 0 {
		what, known := kinds[kind]
		if !known {
			what = "file of kind " + strconv.QuoteRune(rune(kind))
		}
		return "", 0, false, fmt.Errorf("%w: %.100q is a %s", ErrKind, name, what)
	}
	if length, err = number(h[124:136]); err != nil || length < 0 {
		return "", 0, false, fmt.Errorf("%w: %.100q has no usable length", ErrNotBundle, name)
	}
	return name, length, false, nil
}

// fits refuses a file that says it is longer than what is left.
func fits(name string, at, length, size int64) error {
	if length > size-at-block {
		return fmt.Errorf("%w: %.100q says %d bytes, %d are left", ErrTruncated, name, length, size-at-block)
	}
	return nil
}

func readError(at int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends near byte %d", ErrTruncated, at)
	}
	return fmt.Errorf("read bundle at byte %d: %w", at, err)
}

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func octal(b []byte) (int64, error) { return strconv.ParseInt(strings.Trim(text(b), " "), 8, 64) }

func number(b []byte) (int64, error) {
	if b[0]&0x80 == 0 {
		return octal(b)
	}
	if b[0] != 0x80 || !bytes.Equal(b[1:4], []byte{0, 0, 0}) {
		return 0, errors.New("out of range")
	}
	return int64(binary.BigEndian.Uint64(b[4:12])), nil
}
