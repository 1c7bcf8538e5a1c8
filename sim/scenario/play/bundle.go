package play

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/scenario"
)

// bundle exports a release for devices and carries the file to each of them.
func (s *stage) bundle(ctx context.Context, a scenario.Bundle) error {
	devices := s.fleet.Pick(a.To, s.script.Seed)
	var ids []string
	for _, d := range devices {
		ids = append(ids, d.ID())
	}
	dir, err := os.MkdirTemp("", "skein-bundle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "stick.skein")
	err = patiently(ctx, func(ctx context.Context) error { return s.op.Export(ctx, meter.ModelName+"@"+a.Release, ids, file) })
	if err != nil {
		return err
	}
	for _, d := range devices {
		if err := d.ApplyBundle(ctx, file); err != nil {
			return fmt.Errorf("carry a bundle to device %d: %w", d.Number(), err)
		}
	}
	s.note("%s was carried to %d devices", a.Release, len(devices))
	return nil
}
