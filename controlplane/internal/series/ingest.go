package series

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
)

// maxSchemas are remembered; boards of one kind share one.
const maxSchemas = 50_000

// schemaOf returns a schema that some block brought along, or nil.
func (s *Store) schemaOf(id block.SchemaID) *block.Schema {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.schemas[id]
}

func (s *Store) learn(sc *block.Schema) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.schemas[sc.ID()]; known {
		return
	}
	if len(s.schemas) >= maxSchemas {
		for id := range s.schemas { // any one; its devices send it again when they connect
			delete(s.schemas, id)
			break
		}
	}
	s.schemas[sc.ID()] = sc
}

// AppendBlock unpacks a block of one device and stores it. Bytes that are no
// block give wire.ErrMalformed, a schema that is not known
// block.ErrUnknownSchema.
func (s *Store) AppendBlock(ctx context.Context, src Source, data []byte) (Appended, error) {
	r, err := block.NewReader(data, s.schemaOf)
	if err != nil {
		return Appended{}, blockError(err)
	}
	times := r.Times()
	values := make([]float64, len(times))
	var readings []telemetry.Reading
	for _, spec := range r.Schema().Specs() {
		if err := r.Next(values); err != nil {
			return Appended{}, blockError(err)
		}
		for i, v := range values {
			if !math.IsNaN(v) {
				readings = append(readings, telemetry.Reading{Series: spec.Series, Time: time.UnixMilli(times[i]), Value: v})
			}
		}
	}
	if err := r.Next(values); !errors.Is(err, io.EOF) {
		return Appended{}, blockError(err)
	}
	s.learn(r.Schema())
	return s.Append(ctx, src, readings)
}

// blockError makes what sending again would not mend a malformed message.
func blockError(err error) error {
	if errors.Is(err, block.ErrUnknownSchema) {
		return err
	}
	return fmt.Errorf("%w: %w", wire.ErrMalformed, err)
}

// Telemetry stores the block of a device of the fleet.
func (s *Store) Telemetry(ctx context.Context, v fleet.View, data []byte) error {
	n, err := s.AppendBlock(ctx, Source{Device: v.ID, Name: v.Name, Target: v.Target, Site: v.Site()}, data)
	if err != nil {
		return err
	}
	s.count(n)
	if n.Refused() > 0 {
		s.opts.Logger.Debug("readings refused", "device", v.ID, "late", n.Late, "ahead", n.Ahead, "excess", n.Excess, "other", n.Other)
	}
	return nil
}
