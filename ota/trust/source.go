package trust

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
)

// FirstOf asks the sources one after the other until one answers: with the
// file, with fs.ErrNotExist, or with a refusal, which another way would not
// cure. Other errors are of the way. It stays with the way that answered last
// until the next refresh begins, which is when it asks for a root again. nil
// sources are passed over.
func FirstOf(sources ...MetadataSource) MetadataSource {
	var ways []MetadataSource
	for _, s := range sources {
		if s != nil {
			ways = append(ways, s)
		}
	}
	var last atomic.Int64
	return func(ctx context.Context, name string) ([]byte, error) {
		if strings.HasSuffix(name, ".root.json") {
			last.Store(0)
		}
		first := int(last.Load())
		errs := []error{errors.New("no way to the metadata")}
		for i := range ways {
			at := (first + i) % len(ways)
			b, err := ways[at](ctx, name)
			if err == nil || errors.Is(err, fs.ErrNotExist) || AttackClass(err) != "" {
				last.Store(int64(at))
				return b, err
			}
			if ctx.Err() != nil {
				return nil, err
			}
			if i == 0 {
				errs = nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}
