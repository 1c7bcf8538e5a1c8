package hil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Emulator runs arm64 binaries on other machines.
const Emulator = "qemu-aarch64-static"

// Beside is where a program of an architecture lies: beside this one, or in the
// folder of the other architecture there.
func Beside(self, arch, name string) string {
	if arch == "" || arch == runtime.GOARCH {
		return filepath.Join(filepath.Dir(self), name)
	}
	return filepath.Join(filepath.Dir(self), arch, name)
}

// FindAgent finds the shipped agent and, for another architecture, what runs it.
func FindAgent(self, name, arch string) (agent string, emulator []string, err error) {
	switch arch {
	case "", "amd64", "arm64":
	default:
		return "", nil, fmt.Errorf("--arch %q: want amd64 or arm64", arch)
	}
	agent = name
	if agent == "" {
		agent = Beside(self, arch, "skein-agent")
		if _, err := os.Stat(agent); err != nil && (arch == "" || arch == runtime.GOARCH) {
			if found, perr := exec.LookPath("skein-agent"); perr == nil {
				agent = found
			}
		}
	}
	if st, err := os.Stat(agent); err != nil || !st.Mode().IsRegular() {
		return "", nil, fmt.Errorf("%s is no skein-agent: build it with make build build-arm64, or name it with --agent", agent)
	}
	if arch == "" || arch == runtime.GOARCH {
		return agent, nil, nil
	}
	if arch != "arm64" {
		return "", nil, fmt.Errorf("--arch %s: there is no emulator for it here", arch)
	}
	qemu, err := exec.LookPath(Emulator)
	if err != nil {
		return "", nil, fmt.Errorf("--arch arm64: %s is not installed: it is in Debian's qemu-user-static", Emulator)
	}
	return agent, []string{qemu}, nil
}

// Identity is what an agent says of the machine below a root.
type Identity struct {
	Target   string `json:"target"`
	Hardware string `json:"hardware"`
	Serial   string `json:"serial"`
}

// Identify lets the agent look at a tree.
func Identify(ctx context.Context, agent []string, root string) (id Identity, err error) {
	words := append(append([]string(nil), agent...), "identify", "--root", root, "-o", "json")
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
	if err != nil {
		said := ""
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			said = strings.TrimSpace(string(e.Stderr))
		}
		return id, fmt.Errorf("let the agent identify %s: %w: %s", root, err, said)
	}
	if err := json.Unmarshal(out, &id); err != nil {
		return id, fmt.Errorf("let the agent identify %s: %w", root, err)
	}
	return id, nil
}
