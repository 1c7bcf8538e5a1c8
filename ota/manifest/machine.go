package manifest

import (
	"fmt"

	"github.com/skein-fleet/skein/ota"
)

// Layers that concern the machine more than the model: the agent itself and
// the operating system. They carry no model server's file.
const (
	MediaAgent   = "application/vnd.skein.agent.v1"    // the agent's binary, an ELF program
	MediaOSImage = "application/vnd.skein.os-image.v1" // image of a root file system slot
)

// AnnOSTarget, of an OS image, is the target that a device has once it runs it.
const AnnOSTarget = "dev.skein.os.target"

// AgentLayer makes the layer of an agent binary.
func AgentLayer(d ota.Digest, size int64) Descriptor {
	return named(Descriptor{Digest: d, Size: size}, MediaAgent, "skein-agent")
}

// OSLayer makes the layer of an OS image that turns a device into target after.
func OSLayer(d ota.Digest, size int64, after ota.Target) Descriptor {
	l := named(Descriptor{Digest: d, Size: size}, MediaOSImage, "os.img")
	l.Annotations[AnnOSTarget] = after.String()
	return l
}

// Machine reports whether a layer is for the machine: it is not laid out for
// the model server.
func (d Descriptor) Machine() bool { return d.MediaType == MediaAgent || d.MediaType == MediaOSImage }

// Agent returns the layer of the agent binary, if there is one.
func (m *Manifest) Agent() (d Descriptor, ok bool, err error) { return m.only(MediaAgent) }

// OSImage returns the layer of the OS image, if there is one, and the target
// that it leads to.
func (m *Manifest) OSImage() (d Descriptor, after ota.Target, ok bool, err error) {
	d, ok, err = m.only(MediaOSImage)
	if !ok || err != nil {
		return d, after, ok, err
	}
	if after, err = ota.ParseTarget(d.Annotations[AnnOSTarget]); err != nil {
		return d, after, true, fmt.Errorf("%w: OS image: annotation %s: %w", ErrMalformed, AnnOSTarget, err)
	}
	return d, after, true, nil
}

func (m *Manifest) only(mediaType string) (d Descriptor, ok bool, err error) {
	for _, l := range m.Layers {
		if l.MediaType != mediaType {
			continue
		}
		if ok {
			return d, true, fmt.Errorf("%w: two layers of type %s", ErrTwice, mediaType)
		}
		d, ok = l, true
	}
	return d, ok, nil
}
