package blob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/skein-fleet/skein/ota"
)

// OpenPartial returns what is there of a blob that still grows, or ErrNotFound.
// Its content was not hashed. Who reads to the end opens it again for more. The
// caller closes it.
func (s *Store) OpenPartial(d ota.Digest) (io.ReadSeekCloser, error) {
	if _, err := ota.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	f, err := s.files.Open(partialName(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open partial of blob %s: %w", d.Short(), ErrNotFound)
	}
	return f, err
}
