package doctor

import (
	"fmt"
	"syscall"
)

// synchronized asks the kernel whether its clock is.
func synchronized() (yes, known bool) {
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	const timeError = 5
	return state != timeError, err == nil
}

// space is that of the file system of a folder.
func space(dir string) (free, total int64, readOnly bool, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	const readOnlyFlag = 1
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, st.Flags&readOnlyFlag != 0, nil
}
