package process

import "syscall"

// childAttributes put a server into a process group of its own, and end it
// with the agent.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
