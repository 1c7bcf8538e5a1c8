package wire

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Kind is the last part of a topic.
type Kind string

// The topics of the link. Up is published by the device, down by the control plane.
const (
	UpPresence  Kind = "up/presence"
	UpHello     Kind = "up/hello"
	UpReport    Kind = "up/report"
	UpTelemetry Kind = "up/telemetry"
	UpDrift     Kind = "up/drift"
	UpEvent     Kind = "up/event"
	UpLog       Kind = "up/log"
	UpSample    Kind = "up/sample"
	UpGet       Kind = "up/get"
	UpStream    Kind = "up/stream"
	UpBuild     Kind = "up/build"

	DownDesired Kind = "down/desired"
	DownCmd     Kind = "down/cmd"
	DownChunk   Kind = "down/chunk"
	DownBuild   Kind = "down/build"
)

var kinds = map[Kind]bool{
	UpPresence: true, UpHello: true, UpReport: true, UpTelemetry: true, UpDrift: true, UpEvent: true,
	UpLog: true, UpSample: true, UpGet: true, UpStream: true, UpBuild: true,
	DownDesired: true, DownCmd: true, DownChunk: true, DownBuild: true,
}

const topicPrefix = "skein/1/"

// ErrBadTopic is returned for topics outside the scheme.
var ErrBadTopic = errors.New("not a topic of the device link")

// idEncoding is lower-case base32 without padding (RFC 4648 alphabet).
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// DeviceIDLen is the length of a device id: 128 bits in base32.
const DeviceIDLen = 26

// FormatDeviceID returns the text form of 128 random bits.
func FormatDeviceID(b [16]byte) string { return idEncoding.EncodeToString(b[:]) }

// ValidDeviceID reports whether id is the text form of a device id.
func ValidDeviceID(id string) bool {
	if len(id) != DeviceIDLen {
		return false
	}
	b, err := idEncoding.DecodeString(id)
	return err == nil && idEncoding.EncodeToString(b) == id
}

// Shard returns the shard of a device: the first byte of sha256(id) in hex.
func Shard(device string) string {
	sum := sha256.Sum256([]byte(device))
	return hex.EncodeToString(sum[:1])
}

// Topic returns the topic of kind for a device.
func Topic(device string, kind Kind) string {
	return topicPrefix + Shard(device) + "/" + device + "/" + string(kind)
}

// ParseTopic splits a topic and checks that the shard belongs to the device.
func ParseTopic(topic string) (device string, kind Kind, err error) {
	rest, ok := strings.CutPrefix(topic, topicPrefix)
	parts := strings.SplitN(rest, "/", 3)
	if !ok || len(parts) != 3 || !ValidDeviceID(parts[1]) || !kinds[Kind(parts[2])] {
		return "", "", fmt.Errorf("%w: %q", ErrBadTopic, topic)
	}
	if parts[0] != Shard(parts[1]) {
		return "", "", fmt.Errorf("%w: %q: shard of this device is %s", ErrBadTopic, topic, Shard(parts[1]))
	}
	return parts[1], Kind(parts[2]), nil
}

// SpiffeID returns the URI in a device's certificate.
func SpiffeID(domain, tenant, device string) string {
	return "spiffe://" + domain + "/t/" + tenant + "/d/" + device
}

// ParseSpiffeID splits the URI of a device certificate.
func ParseSpiffeID(uri string) (domain, tenant, device string, err error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[0] == "" || parts[1] != "t" || parts[2] == "" || parts[3] != "d" || !ValidDeviceID(parts[4]) {
		return "", "", "", fmt.Errorf("%q is not spiffe://DOMAIN/t/TENANT/d/DEVICE", uri)
	}
	return parts[0], parts[2], parts[4], nil
}
