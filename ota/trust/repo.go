package trust

import (
	"context"
	"errors"
	"time"

	"github.com/skein-fleet/skein/ota"
)

func InitDev(dir, domain string, now time.Time) (*Summary, error) { return nil, errors.ErrUnsupported }

type Summary struct {
	Dir, Domain string
	RootDigest  ota.Digest
	Keys        []string
}

type Repo struct{}

func OpenRepo(dir string) (*Repo, error) { return nil, errors.ErrUnsupported }
func (r *Repo) AddTarget(ctx context.Context, path string, length int64, d ota.Digest, custom TargetCustom, now time.Time) error {
	return errors.ErrUnsupported
}
func (r *Repo) Refresh(now time.Time) error          { return errors.ErrUnsupported }
func (r *Repo) Metadata(name string) ([]byte, error) { return nil, errors.ErrUnsupported }
func (r *Repo) Root() []byte                         { return nil }
func (r *Repo) DirectorSigner() (*Signer, error)     { return nil, errors.ErrUnsupported }
