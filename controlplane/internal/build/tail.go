package build

// maxLog bounds the log of a build in memory, and what is kept of a failed one.
const maxLog = 256 << 10

// tail is the end of a log. Its owner guards it.
type tail struct {
	buf   []byte
	start int64 // offset of buf in the whole log
}

func (t *tail) reset() { *t = tail{} }

// add takes data at an offset: what is known is left out, what was lost is
// marked by where the rest begins.
func (t *tail) add(offset int64, data []byte) {
	end := t.start + int64(len(t.buf))
	switch {
	case offset+int64(len(data)) <= end || offset < 0:
		return // a repeat
	case offset < end:
		data = data[end-offset:]
	case offset > end && len(t.buf) > 0:
		t.buf = append(t.buf, "\n[lines of the log were lost on the way]\n"...)
		t.start = offset - int64(len(t.buf))
	case offset > end:
		t.start = offset
	}
	t.buf = append(t.buf, data...)
	if over := len(t.buf) - maxLog; over > 0 {
		t.buf = append([]byte(nil), t.buf[over:]...)
		t.start += int64(over)
	}
}

// from returns what is there from an offset on, and the next offset.
func (t *tail) from(offset int64) ([]byte, int64) {
	end := t.start + int64(len(t.buf))
	offset = max(offset, t.start)
	if offset >= end {
		return nil, end
	}
	return append([]byte(nil), t.buf[offset-t.start:]...), end
}

func (t *tail) all() []byte { return append([]byte(nil), t.buf...) }
