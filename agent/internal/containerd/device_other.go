//go:build !linux

package containerd

import (
	"errors"

	"github.com/containerd/containerd/v2/pkg/oci"
)

var errLinux = errors.New("containers run on Linux only")

func withDeviceGroup(string) oci.SpecOpts { return nil }

func syncFileSystem(string) error { return errLinux }

func freeBytes(string) (int64, error) { return 0, errLinux }
