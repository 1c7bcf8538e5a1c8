package tegra

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
)

// MaxLine bounds a line of input; Thor's longest real lines have 700 bytes.
const MaxLine = 16 << 10

// ErrLineTooLong is given to the callback of Lines for a line over MaxLine.
var ErrLineTooLong = fmt.Errorf("line longer than %d bytes", MaxLine)

// Lines calls each for every line of r that is not blank, until the end of r,
// an error of each, or the end of ctx, which is looked at between lines: close
// r to interrupt a read. Of a line longer than MaxLine the rest is thrown away
// unread; each gets its beginning and ErrLineTooLong. A last line without a
// line end is given too, though a killed tegrastats may have cut it.
func Lines(ctx context.Context, r io.Reader, each func(line string, err error) error) error {
	return lines(ctx, bufio.NewReaderSize(r, MaxLine), each)
}

func lines(ctx context.Context, in *bufio.Reader, each func(line string, err error) error) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		text, err := in.ReadSlice('\n')
		line := string(text)
		var bad error
		for errors.Is(err, bufio.ErrBufferFull) {
			bad = ErrLineTooLong
			_, err = in.ReadSlice('\n')
		}
		if !blankLine(line) {
			if err := each(line, bad); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tegrastats lines: %w", err)
		}
	}
}

func blankLine(s string) bool {
	for i := range len(s) {
		if !isBlank(s[i]) {
			return false
		}
	}
	return true
}

// ParseStream writes one JSON object a line for every line of r that is not
// blank. A line over MaxLine gives an object whose key error says so. Output
// is flushed whenever no more input is waiting, so that it can follow a
// running tegrastats.
func ParseStream(ctx context.Context, r io.Reader, w io.Writer) error {
	in := bufio.NewReaderSize(r, MaxLine)
	out := bufio.NewWriter(w)
	err := lines(ctx, in, func(line string, bad error) error {
		var text []byte
		if bad != nil {
			text = fmt.Appendf(nil, `{"error":%q,"unknown":[]}`, bad)
		} else {
			s := Parse(line)
			var err error
			if text, err = s.JSON(); err != nil {
				return fmt.Errorf("print parsed line: %w", err)
			}
		}
		out.Write(append(text, '\n')) // a bufio.Writer keeps its first error for Flush
		if in.Buffered() == 0 {
			return flush(out)
		}
		return nil
	})
	return errors.Join(err, flush(out))
}

func flush(out *bufio.Writer) error {
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write parsed lines: %w", err)
	}
	return nil
}
