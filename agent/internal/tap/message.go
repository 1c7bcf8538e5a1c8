package tap

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

const frameHead = 5 // flag and length before each message

// message is one gRPC message with its head.
type message struct {
	buf      []byte
	pooled   bool
	held     int64
	gate     *gate
	encoding string
	most     int64
	clear    []byte // the message without compression, once it was asked for
}

func (m *message) raw() []byte { return m.buf }

func (m *message) free() {
	if m.pooled {
		putBuf(m.buf)
	}
	m.gate.release(m.held)
	m.buf, m.pooled, m.held = nil, false, 0
}

func frameOf(msg []byte) []byte {
	out := make([]byte, frameHead+len(msg))
	binary.BigEndian.PutUint32(out[1:], uint32(len(msg)))
	copy(out[frameHead:], msg)
	return out
}

// plain returns the message without compression.
func (m *message) plain() ([]byte, error) {
	if m.buf[0] == 0 {
		return m.buf[frameHead:], nil
	}
	if m.clear != nil {
		return m.clear, nil
	}
	b, err := inflate(m.encoding, m.buf[frameHead:], m.most)
	if err != nil {
		return nil, &rpcError{codeInvalidArgument, err.Error()}
	}
	m.clear = b
	return b, nil
}

func (m *message) names() (model, version string, err error) {
	b, err := m.plain()
	if err != nil {
		return "", "", err
	}
	model, version, ok := namesOf(b)
	if !ok {
		return "", "", &rpcError{codeInvalidArgument, "the request is no protobuf message"}
	}
	return model, version, nil
}

// inflate undoes a compression, up to most bytes.
func inflate(encoding string, b []byte, most int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch encoding {
	case "", "identity":
		return b, nil
	case "gzip":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(b))
	default:
		return nil, fmt.Errorf("the compression %q is not known here", encoding)
	}
	if err != nil {
		return nil, fmt.Errorf("undo %s: %w", encoding, err)
	}
	out, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("undo %s: %w", encoding, err)
	}
	if int64(len(out)) > most {
		return nil, fmt.Errorf("undo %s: more than %d bytes", encoding, most)
	}
	return out, nil
}

// messageReader reads messages off a body.
type messageReader struct {
	r        io.Reader
	gate     *gate
	most     int64
	encoding string
}

// next returns the next message, io.EOF when there is none.
func (rd *messageReader) next() (_ *message, err error) {
	m := &message{buf: getBuf(), pooled: true, gate: rd.gate, encoding: rd.encoding, most: rd.most}
	defer func() {
		if err != nil {
			m.free()
		}
	}()
	pooled := m.buf
	n, err := io.ReadFull(rd.r, pooled[:frameHead])
	if errors.Is(err, io.EOF) && n == 0 {
		return nil, io.EOF
	}
	if err != nil {
		return nil, badBody{err}
	}
	length := int64(binary.BigEndian.Uint32(pooled[1:]))
	if length > rd.most {
		return nil, &rpcError{codeResourceExhausted, fmt.Sprintf("the request is larger than the tap takes: %d bytes", rd.most)}
	}
	first := min(length+frameHead, bufSize)
	if _, err := io.ReadFull(rd.r, pooled[frameHead:first]); err != nil {
		return nil, badBody{err}
	}
	if first == length+frameHead {
		m.buf = pooled[:first]
		return m, nil
	}
	// A large one grows with what comes, not with what is announced.
	big := append(make([]byte, 0, 4*bufSize), pooled...)
	for int64(len(big)) < length+frameHead {
		want := min(length+frameHead, int64(2*len(big)))
		if err := rd.gate.hold(want - int64(len(big))); err != nil {
			return nil, err
		}
		m.held += want - int64(len(big))
		from := len(big)
		big = append(big, make([]byte, want-int64(from))...)
		if _, err := io.ReadFull(rd.r, big[from:]); err != nil {
			return nil, badBody{err}
		}
	}
	putBuf(pooled)
	m.buf, m.pooled = big, false
	return m, nil
}

// ended makes sure that nothing follows.
func (rd *messageReader) ended() error {
	var b [1]byte
	n, err := rd.r.Read(b[:])
	for n == 0 && err == nil {
		n, err = rd.r.Read(b[:])
	}
	if n > 0 {
		return &rpcError{codeInvalidArgument, "the call has more than one request"}
	}
	if !errors.Is(err, io.EOF) {
		return badBody{err}
	}
	return nil
}

// notSent says whether an error is from before a request was sent.
func notSent(err error) bool {
	if errors.Is(err, errNotSent) {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial" || errors.Is(err, http.ErrSkipAltProtocol)
}
