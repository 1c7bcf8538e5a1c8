package trust

import (
	"context"
	"crypto"
	"errors"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
)

type MetadataSource func(ctx context.Context, name string) ([]byte, error)

var ErrUnknownTarget = errors.New("image repository does not list the target")

type Client struct{}

func NewClient(f slot.Files, root []byte) (*Client, error) { return nil, errors.ErrUnsupported }
func (c *Client) Refresh(ctx context.Context, src MetadataSource, now time.Time) error {
	return errors.ErrUnsupported
}
func (c *Client) Target(path string) (TargetInfo, error)    { return TargetInfo{}, errors.ErrUnsupported }
func (c *Client) DirectorKeys() ([]crypto.PublicKey, error) { return nil, errors.ErrUnsupported }
func (c *Client) TrustedTime() time.Time                    { return time.Time{} }
func (c *Client) Observe(t time.Time) error                 { return errors.ErrUnsupported }
