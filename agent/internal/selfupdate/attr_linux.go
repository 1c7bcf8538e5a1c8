package selfupdate

import "syscall"

// childAttributes end the agent with its supervisor, also one that hangs.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
