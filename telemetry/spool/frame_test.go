package spool

import (
	"bytes"
	"testing"

	"github.com/skein-fleet/skein/proto/wire"
)

func FuzzDecodeFrame(f *testing.F) {
	f.Add(encodeFrame(wire.UpEvent, []byte("payload"), true))
	f.Add([]byte{frameVersion, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, payload, thinned, err := decodeFrame(b)
		if err != nil {
			return
		}
		again := encodeFrame(kind, payload, thinned)
		again[1] = b[1] // unknown flags are carried by the checksum only
		if !bytes.Equal(again[:len(again)-frameTail], b[:len(b)-frameTail]) {
			t.Fatalf("%x reads as %s %x", b, kind, payload)
		}
	})
}
