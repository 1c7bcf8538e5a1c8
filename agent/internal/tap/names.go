package tap

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// Numbers of the fields that hold the names: the same in every message of the
// protocol that has them, requests and answers.
const (
	fieldName    = 1
	fieldVersion = 2
	// of ModelStreamInferResponse
	fieldAnswer = 2
)

// namesOf reads model and version of a message; the last of several counts, as
// protobuf wants it. ok is false for bytes that are no message.
func namesOf(msg []byte) (name, version string, ok bool) {
	ok = eachField(msg, func(num protowire.Number, _, value []byte) {
		switch num {
		case fieldName:
			name = string(value)
		case fieldVersion:
			version = string(value)
		}
	})
	return name, version, ok
}

// eachField calls f for each length-delimited field with the whole field and its value.
func eachField(msg []byte, f func(num protowire.Number, whole, value []byte)) bool {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return false
		}
		m := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if m < 0 {
			return false
		}
		if typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(msg[n:])
			f(num, msg[:n+m], v)
		}
		msg = msg[n+m:]
	}
	return true
}

// withNames returns msg with these names in place of its own.
func withNames(msg []byte, name, version string) []byte {
	out := make([]byte, 0, len(msg)+len(name)+len(version)+16)
	if name != "" {
		out = protowire.AppendString(protowire.AppendTag(out, fieldName, protowire.BytesType), name)
	}
	if version != "" {
		out = protowire.AppendString(protowire.AppendTag(out, fieldVersion, protowire.BytesType), version)
	}
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		m := protowire.ConsumeFieldValue(num, typ, msg[max(n, 0):])
		if n < 0 || m < 0 {
			return append(out, msg...)
		}
		if typ != protowire.BytesType || num != fieldName && num != fieldVersion {
			out = append(out, msg[:n+m]...)
		}
		msg = msg[n+m:]
	}
	return out
}

// withNamesInside does the same to the answer inside a stream's message.
func withNamesInside(msg []byte, name, version string) []byte {
	var out []byte
	ok := eachField(msg, func(num protowire.Number, whole, value []byte) {
		if num != fieldAnswer {
			out = append(out, whole...)
			return
		}
		out = protowire.AppendTag(out, fieldAnswer, protowire.BytesType)
		out = protowire.AppendBytes(out, withNames(value, name, version))
	})
	if !ok {
		return msg
	}
	return out
}
