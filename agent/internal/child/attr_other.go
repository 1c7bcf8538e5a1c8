//go:build !linux

package child

import (
	"fmt"
	"os"
	"syscall"
)

func attributes(uint32, uint32) *syscall.SysProcAttr { return nil }

// openPlain opens a plain file.
func openPlain(name string) (*os.File, error) {
	if st, err := os.Lstat(name); err != nil || !st.Mode().IsRegular() {
		if err == nil {
			err = fmt.Errorf("%s is not a plain file", name)
		}
		return nil, err
	}
	return os.Open(name)
}

func killGroup(p *os.Process) error { return p.Kill() }
