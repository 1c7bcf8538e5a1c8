package trust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
)

// BundleMetadata reads metadata/NAME below root, such as an unpacked bundle or
// a repository's own folder. It reads no more than one file of metadata may
// have, and one byte.
func BundleMetadata(root fs.FS) MetadataSource {
	return func(ctx context.Context, name string) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if !strings.HasSuffix(name, ".json") || strings.Contains(name, "/") || !fs.ValidPath(name) {
			return nil, fmt.Errorf("bundle: %q is no name of metadata: %w", name, fs.ErrNotExist)
		}
		f, err := root.Open(path.Join(metaDir, name))
		if err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxTargets+1))
		if err != nil {
			return nil, fmt.Errorf("bundle: read %s: %w", name, err)
		}
		return b, nil
	}
}

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
