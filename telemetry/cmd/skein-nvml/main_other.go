//go:build !cgo || !linux

package main

import (
	"fmt"
	"os"

	"github.com/skein-fleet/skein/telemetry/probe/nvml"
)

func main() {
	fmt.Fprintln(os.Stderr, "skein-nvml: this build cannot load NVML: it was built without cgo")
	os.Exit(nvml.ExitNoLibrary)
}
