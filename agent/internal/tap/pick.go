package tap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// errNoModel is returned for a model or version that nothing here serves.
var errNoModel = errors.New("not served here")

const lookEvery = 20 * time.Millisecond

// pick returns the workload for a request: the one that serves, or the one of
// the version that is named. A server that is being started again is waited for.
func (t *Tap) pick(ctx context.Context, model, version string, wait bool) (runtime.Endpoint, func(), error) {
	e, release, err := t.opts.Endpoints.Acquire(ctx, "")
	if errors.Is(err, runtime.ErrNotLoaded) && wait {
		e, release, err = t.await(ctx)
	}
	if err != nil {
		return runtime.Endpoint{}, nil, err
	}
	if model == "" {
		return e, release, nil
	}
	if e.ReleaseModel == model && (version == "" || e.ReleaseVersion == version) {
		return e, release, nil
	}
	serving := e
	release()
	if version != "" && t.opts.Loaded != nil {
		for _, id := range t.opts.Loaded(ctx) {
			e, release, err := t.opts.Endpoints.Acquire(ctx, id)
			if err != nil {
				continue
			}
			if e.ReleaseModel == model && e.ReleaseVersion == version {
				return e, release, nil
			}
			release()
		}
	}
	if version != "" {
		return runtime.Endpoint{}, nil, fmt.Errorf("model %q version %q is %w: version %q of %q serves", model, version, errNoModel, serving.ReleaseVersion, serving.ReleaseModel)
	}
	return runtime.Endpoint{}, nil, fmt.Errorf("model %q is %w: %q serves", model, errNoModel, serving.ReleaseModel)
}

// await looks until something serves.
func (t *Tap) await(ctx context.Context) (runtime.Endpoint, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.Limits.WaitServer)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		e, release, err := t.opts.Endpoints.Acquire(ctx, "")
		if !errors.Is(err, runtime.ErrNotLoaded) {
			return e, release, err
		}
		select {
		case <-ctx.Done():
			return e, nil, err
		case <-tick.C:
		}
	}
}

// mapped says whether the server knows the model by another name than the
// release; a server whose version is any may answer with one of its own.
func mapped(e runtime.Endpoint) bool {
	return e.Model != e.ReleaseModel || e.Version != e.ReleaseVersion
}
