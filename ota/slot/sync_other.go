//go:build !linux

package slot

import (
	"io/fs"
	"os"
	"path/filepath"
)

// syncFS makes all below the directory f durable, file by file.
func syncFS(f *os.File) error {
	return filepath.WalkDir(f.Name(), func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		g, err := os.Open(name)
		if err != nil {
			return err
		}
		defer g.Close()
		return g.Sync()
	})
}
