package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/ota/slot"
)

// preseed is a file by which an image or an installer enrols devices: it is
// read once, and removed when the device is enrolled.
type preseed struct {
	Server string            `json:"server"`
	Claim  string            `json:"claim"`
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// enrollFromFile enrols by the file, where there is one and the device is not
// enrolled. A device that is enrolled keeps what it is; the file goes all the
// same, since it holds a claim.
func enrollFromFile(ctx context.Context, s streams, path string, m *host.Machine, files slot.Files) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := agent.LoadIdentity(files); errors.Is(lerr, agent.ErrNotEnrolled) {
			return fmt.Errorf("this device is not enrolled: write %s with server and claim, or call skein-agent enroll", path)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read preseed: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var p preseed
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("%w: preseed %s: %w", errUsage, path, err)
	}
	if p.Server == "" || p.Claim == "" {
		return fmt.Errorf("%w: preseed %s: server and claim are needed", errUsage, path)
	}
	if err := enrollDevice(ctx, s, enrollOptions{server: p.Server, claim: p.Claim, name: p.Name, labels: p.Labels}, m, files); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil { // enrolled all the same
		fmt.Fprintf(s.err, "the device is enrolled, remove %s, which holds a claim: %v\n", path, err)
	}
	return nil
}
