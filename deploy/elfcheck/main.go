// Command elfcheck says whether a binary is what is shipped: for one processor,
// linked statically, and not larger than a device should take. Scripts of deploy
// call it.
package main

import (
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"os"
)

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func main() {
	arch := flag.String("arch", "arm64", "amd64 or arm64")
	static := flag.Bool("static", false, "it must need no loader and no library")
	most := flag.Int64("max", 0, "bytes that it may have; 0 is no limit")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: elfcheck [-arch ARCH] [-static] [-max BYTES] FILE")
		os.Exit(2)
	}
	if err := check(flag.Arg(0), *arch, *static, *most); err != nil {
		fmt.Fprintf(os.Stderr, "elfcheck: %s: %v\n", flag.Arg(0), err)
		os.Exit(1)
	}
}

func check(name, arch string, static bool, most int64) error {
	f, err := elf.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	var errs []error
	if want, ok := machines[arch]; !ok || f.Machine != want {
		errs = append(errs, fmt.Errorf("it is for %v, want %s", f.Machine, arch))
	}
	if most > 0 && st.Size() >= most {
		errs = append(errs, fmt.Errorf("it has %d bytes, want less than %d", st.Size(), most))
	}
	if static {
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				errs = append(errs, errors.New("it needs a loader: it is not static"))
			}
		}
		libs, err := f.ImportedLibraries()
		if err != nil || len(libs) > 0 {
			errs = append(errs, fmt.Errorf("it needs libraries %v (%v)", libs, err))
		}
	}
	if len(errs) == 0 {
		fmt.Printf("%s: %s, %d bytes\n", name, arch, st.Size())
	}
	return errors.Join(errs...)
}
