package release

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// MachineLayer is an agent binary or an OS image that a release brings.
type MachineLayer struct {
	// Target that gets it; empty: all that it can be for.
	Target  string
	Agent   ota.Digest
	OSImage ota.Digest
	// OSTarget is what a device is once it runs the image.
	OSTarget string
}

var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64"}

// machine checks what a release brings for the machine and gives it to targets.
// What an OS image leads to is served by the release as well, with the same
// agent: an image and what runs under it are one transaction.
func (c *Catalog) machine(ctx context.Context, r Request, targets []ota.Target) (map[string][]manifest.Descriptor, []ota.Target, error) {
	if len(r.Machine) == 0 {
		return nil, targets, nil
	}
	if r.Auto {
		return nil, nil, fmt.Errorf("%w: a release that no person signs brings neither an agent nor an operating system", ErrInvalid)
	}
	out := map[string][]manifest.Descriptor{}
	for _, l := range r.Machine {
		if l.OSImage == "" {
			continue
		}
		after, err := c.osImage(ctx, l, targets, out)
		if err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(targets, func(t ota.Target) bool { return t.String() == after.String() }) {
			targets = append(targets, after)
		}
	}
	for _, l := range r.Machine {
		if l.OSImage != "" {
			continue
		}
		if err := c.agentBinary(ctx, l, targets, out); err != nil {
			return nil, nil, err
		}
	}
	return out, targets, nil
}

// give adds a layer to a target, one of a kind.
func give(out map[string][]manifest.Descriptor, t ota.Target, l manifest.Descriptor) error {
	for _, have := range out[t.String()] {
		if have.MediaType == l.MediaType {
			return fmt.Errorf("%w: target %s gets two layers of type %s", ErrInvalid, t, l.MediaType)
		}
	}
	out[t.String()] = append(out[t.String()], l)
	return nil
}

// chosen are the targets that a layer names, or all of an architecture.
func chosen(text, os, arch string, targets []ota.Target) ([]ota.Target, error) {
	if text == "" {
		var out []ota.Target
		for _, t := range targets {
			if t.OS == os && t.Arch == arch {
				out = append(out, t)
			}
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("%w: no target of the release is %s/%s", ErrInvalid, os, arch)
		}
		return out, nil
	}
	want, err := ota.ParseTarget(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, t := range targets {
		if t.String() == want.String() {
			if t.OS != os || t.Arch != arch {
				return nil, fmt.Errorf("%w: the layer is for %s/%s, the target is %s", ErrInvalid, os, arch, t)
			}
			return []ota.Target{t}, nil
		}
	}
	return nil, fmt.Errorf("%w: %s is no target of the release", ErrInvalid, want)
}

func (c *Catalog) agentBinary(ctx context.Context, l MachineLayer, targets []ota.Target, out map[string][]manifest.Descriptor) error {
	d, err := uploaded("agent", string(l.Agent))
	if err != nil {
		return err
	}
	f, size, err := c.cfg.Blobs.Open(ctx, d)
	if err != nil {
		return notUploaded("agent", d, err)
	}
	defer f.Close()
	program, err := elf.NewFile(seekerAt{f})
	if err != nil {
		return fmt.Errorf("%w: agent %s is no ELF program: %w", ErrInvalid, d.Short(), err)
	}
	arch, known := architectures[program.Machine]
	if !known || program.Type != elf.ET_EXEC && program.Type != elf.ET_DYN {
		return fmt.Errorf("%w: agent %s is an ELF file of type %s for %s", ErrInvalid, d.Short(), program.Type, program.Machine)
	}
	ts, err := chosen(l.Target, "linux", arch, targets)
	if err != nil {
		return fmt.Errorf("agent %s: %w", d.Short(), err)
	}
	for _, t := range ts {
		if err := give(out, t, manifest.AgentLayer(d, size)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalog) osImage(ctx context.Context, l MachineLayer, targets []ota.Target, out map[string][]manifest.Descriptor) (after ota.Target, err error) {
	if l.Agent != "" {
		return after, fmt.Errorf("%w: a layer is an agent or an OS image, not both", ErrInvalid)
	}
	d, err := uploaded("OS image", string(l.OSImage))
	if err != nil {
		return after, err
	}
	size, err := c.cfg.Blobs.Size(d)
	if err != nil {
		return after, notUploaded("OS image", d, err)
	}
	if after, err = ota.ParseTarget(l.OSTarget); err != nil {
		return after, fmt.Errorf("%w: the target that the OS image leads to: %w", ErrInvalid, err)
	}
	if len(after.Attrs) == 0 {
		return after, fmt.Errorf("%w: the target %s that the OS image leads to names nothing that tells it from another, such as l4t=39.2.0", ErrInvalid, after)
	}
	ts, err := chosen(l.Target, after.OS, after.Arch, targets)
	if err != nil {
		return after, fmt.Errorf("OS image %s: %w", d.Short(), err)
	}
	// Also for a device that was there already, with another image.
	if !slices.ContainsFunc(ts, func(t ota.Target) bool { return t.String() == after.String() }) {
		ts = append(ts, after)
	}
	for _, t := range ts {
		if err := give(out, t, manifest.OSLayer(d, size, after)); err != nil {
			return after, err
		}
	}
	return after, nil
}

// agentsOf lists the agent binaries, each content once.
func agentsOf(machine map[string][]manifest.Descriptor) (out []manifest.Descriptor) {
	for _, ls := range machine {
		for _, l := range ls {
			if l.MediaType == manifest.MediaAgent && !slices.ContainsFunc(out, func(o manifest.Descriptor) bool { return o.Digest == l.Digest }) {
				out = append(out, l)
			}
		}
	}
	slices.SortFunc(out, func(a, b manifest.Descriptor) int { return slices.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return out
}

// Machine lists the targets of a release that get an agent or an operating
// system with it.
func (c *Catalog) Machine(tenant string, d ota.Digest) (agents, systems []string) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.known[key{tenant, d}]
	if e == nil {
		return nil, nil
	}
	return e.agents, e.systems
}

// seekerAt reads at offsets of what can seek.
type seekerAt struct{ io.ReadSeeker }

// ReadAt implements io.ReaderAt.
func (s seekerAt) ReadAt(p []byte, off int64) (int, error) {
	if _, err := s.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(s.ReadSeeker, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}
