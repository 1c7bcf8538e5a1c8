package host

import "github.com/skein-fleet/skein/ota"

// Facts are what a device is.
type Facts struct {
	Target   ota.Target
	Hardware string // for people, for example "NVIDIA Jetson Orin Nano Developer Kit"
	Serial   string
	BootID   uint64 // differs between boots; 0 when unknown
}
