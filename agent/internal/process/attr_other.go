//go:build !linux

package process

import "syscall"

// childAttributes put a server into a process group of its own.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
