//go:build !linux

package selfupdate

import "syscall"

// childAttributes change nothing here.
func childAttributes() *syscall.SysProcAttr { return nil }
