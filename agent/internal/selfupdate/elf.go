package selfupdate

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// ErrWrongBinary is returned for what cannot run on this machine.
var ErrWrongBinary = errors.New("the agent binary is not for this machine")

var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "riscv64": elf.EM_RISCV, "386": elf.EM_386,
}

// CheckBinary reads the header of a program, before anything depends on it.
func CheckBinary(r io.ReadSeeker) error { return checkBinary(r, runtime.GOARCH) }

func checkBinary(r io.ReadSeeker, arch string) error {
	f, err := elf.NewFile(readerAt{r})
	if err != nil {
		return fmt.Errorf("%w: it is no ELF program: %w", ErrWrongBinary, err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("%w: its ELF type is %s, a program is wanted", ErrWrongBinary, f.Type)
	}
	if want, known := machines[arch]; known && f.Machine != want {
		return fmt.Errorf("%w: it is for %s, this machine is %s", ErrWrongBinary, f.Machine, want)
	}
	if f.Entry == 0 {
		return fmt.Errorf("%w: it has no entry point", ErrWrongBinary)
	}
	return nil
}

// readerAt reads at offsets of what can seek.
type readerAt struct{ io.ReadSeeker }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.ReadFull(r.ReadSeeker, p)
}
