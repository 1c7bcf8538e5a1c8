package wire

import "fmt"

// Get is the payload of up/get: blocks that the device wants of one stream, a
// range of a blob or a file of trust metadata. Block i of a stream is Block
// bytes from Offset+i*Block, the last one may be shorter. A request adds to the
// ones before; a block is asked for again only when the device takes it for lost.
type Get struct {
	ID     MessageID `cbor:"1,keyasint"`
	Stream uint64    `cbor:"2,keyasint"` // chosen by the device, one at a time is used for one range
	Digest []byte    `cbor:"3,keyasint,omitempty"`
	Name   string    `cbor:"4,keyasint,omitempty"` // instead of Digest: a file of trust metadata
	Offset int64     `cbor:"5,keyasint,omitempty"`
	Length int64     `cbor:"6,keyasint,omitempty"` // of the stream; 0 with Name: all of it, its first answer says how much
	Block  int       `cbor:"7,keyasint"`
	Run    int       `cbor:"8,keyasint"`            // blocks in a row that one answer may hold
	Seq    uint64    `cbor:"9,keyasint"`            // of this request in the stream, from 1
	Base   uint64    `cbor:"10,keyasint,omitempty"` // first block of Wanted
	Wanted []byte    `cbor:"11,keyasint,omitempty"` // bit i%8 of byte i/8: block Base+i
	Stop   bool      `cbor:"12,keyasint,omitempty"` // send nothing more of this stream
}

// Refusal is why a request is not answered with blocks.
type Refusal uint8

// The refusals.
const (
	RefusedNotFound  Refusal = 1
	RefusedForbidden Refusal = 2 // no release of this device contains it
	RefusedBusy      Refusal = 3 // later, after Wait
	RefusedMalformed Refusal = 4 // outside of the blob, too much, not the same stream
)

// String returns the refusal's name.
func (r Refusal) String() string {
	switch r {
	case RefusedNotFound:
		return "not found"
	case RefusedForbidden:
		return "forbidden"
	case RefusedBusy:
		return "busy"
	case RefusedMalformed:
		return "malformed"
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// Chunk is the payload of down/chunk: whole blocks of a stream from block
// First, or a refusal.
type Chunk struct {
	Stream  uint64  `cbor:"1,keyasint"`
	Seq     uint64  `cbor:"2,keyasint"` // of the request it answers
	First   uint64  `cbor:"3,keyasint,omitempty"`
	Data    []byte  `cbor:"4,keyasint,omitempty"`
	Size    int64   `cbor:"5,keyasint,omitempty"` // of the whole blob or file
	Tag     []byte  `cbor:"6,keyasint,omitempty"` // of a file: the first 8 bytes of its sha256
	Refused Refusal `cbor:"7,keyasint,omitempty"`
	Message string  `cbor:"8,keyasint,omitempty"`
	Wait    int64   `cbor:"9,keyasint,omitempty"` // milliseconds before it is asked again
}

// Limits of a stream; requests outside of them are refused.
const (
	MinBlock    = 1 << 10
	MaxBlock    = 64 << 10
	MaxRun      = 128 << 10 // bytes of one answer
	MaxWanted   = 1 << 10   // bytes of Wanted
	MaxMetaName = 128
)
