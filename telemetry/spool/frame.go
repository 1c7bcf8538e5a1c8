package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/skein-fleet/skein/proto/wire"
)

// A frame on disk:
//
//	offset  size  content
//	0       1     version, 1
//	1       1     flags, bit 0: thinned
//	2       1     length of the kind, k
//	3       4     length of the payload, p, big endian
//	7       k     kind
//	7+k     p     payload
//	7+k+p   4     CRC-32C of all before it, big endian
const (
	frameVersion = 1
	frameHead    = 7
	frameTail    = 4
	flagThinned  = 1
)

var (
	errFrame   = errors.New("damaged frame")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func frameSize(kind wire.Kind, payload []byte) int64 {
	return int64(frameHead + len(kind) + len(payload) + frameTail)
}

func encodeFrame(kind wire.Kind, payload []byte, thinned bool) []byte {
	b := make([]byte, 0, frameSize(kind, payload))
	var flags byte
	if thinned {
		flags = flagThinned
	}
	b = append(b, frameVersion, flags, byte(len(kind)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, kind...)
	b = append(b, payload...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeFrame returns the parts of b; the payload shares its memory.
func decodeFrame(b []byte) (kind wire.Kind, payload []byte, thinned bool, err error) {
	if len(b) < frameHead+frameTail || b[0] != frameVersion {
		return "", nil, false, fmt.Errorf("%w: %d bytes", errFrame, len(b))
	}
	k, p := int(b[2]), int(binary.BigEndian.Uint32(b[3:7]))
	if len(b) != frameHead+k+p+frameTail {
		return "", nil, false, fmt.Errorf("%w: %d bytes, header says %d", errFrame, len(b), frameHead+k+p+frameTail)
	}
	body, sum := b[:len(b)-frameTail], binary.BigEndian.Uint32(b[len(b)-frameTail:])
	if crc32.Checksum(body, castagnoli) != sum {
		return "", nil, false, fmt.Errorf("%w: checksum", errFrame)
	}
	return wire.Kind(b[frameHead : frameHead+k]), b[frameHead+k : frameHead+k+p], b[1]&flagThinned != 0, nil
}
