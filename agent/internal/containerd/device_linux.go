package containerd

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"
)

// withDeviceGroup puts the user of a container into the group of a device node,
// as on the host: cameras belong to the group video.
func withDeviceGroup(device string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		var st unix.Stat_t
		if err := unix.Stat(device, &st); err != nil {
			return fmt.Errorf("look at %s: %w", device, err)
		}
		u := &s.Process.User
		if st.Gid != 0 && st.Mode&0o060 != 0 && !slices.Contains(u.AdditionalGids, st.Gid) {
			u.AdditionalGids = append(u.AdditionalGids, st.Gid)
		}
		return nil
	}
}

// syncFileSystem makes durable what was written to the file system of path.
func syncFileSystem(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open %s to sync its file system: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", path, err)
	}
	return nil
}

// freeBytes is the room on the file system of path.
func freeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("look for room at %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
