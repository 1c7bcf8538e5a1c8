package slot

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncFS makes the file system that holds f durable.
func syncFS(f *os.File) error { return unix.Syncfs(int(f.Fd())) }
