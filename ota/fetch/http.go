package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// ErrAnswer is returned for answers that are not what was asked for.
var ErrAnswer = errors.New("unusable answer")

type httpSource struct {
	client  *http.Client
	address func(ota.Digest) string
}

// HTTP returns the source of a control plane, registry or cache: ranges of
// GET BASE/v2/skein/blobs/DIGEST. The client must not have a total timeout.
func HTTP(client *http.Client, baseURL string) Source {
	base := strings.TrimSuffix(baseURL, "/")
	return HTTPAt(client, func(d ota.Digest) string { return base + "/v2/skein/blobs/" + string(d) })
}

// HTTPAt is HTTP for servers that keep their files elsewhere: address says where.
func HTTPAt(client *http.Client, address func(ota.Digest) string) Source {
	return httpSource{client: client, address: address}
}

// Open implements Source.
func (s httpSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	if length <= 0 || offset < 0 {
		return nil, fmt.Errorf("%w: range %d+%d", ErrAnswer, offset, length)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.address(d), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", d.Short(), err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	// Nobody may re-encode on the way: offsets are those of the blob.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", d.Short(), err)
	}
	if err := accept(resp, offset); err != nil {
		return nil, errors.Join(fmt.Errorf("ask for %s: %w", d.Short(), err), resp.Body.Close())
	}
	if resp.StatusCode == http.StatusOK && offset > 0 {
		// The server, or something before it, does not do ranges.
		return &skipper{body: resp.Body, left: offset}, nil
	}
	return resp.Body, nil
}

// skipper passes over the first left bytes of body: on a slow link that takes
// longer than Fetcher.Window, so they count as progress.
type skipper struct {
	body    io.ReadCloser
	left    int64
	skipped atomic.Int64
}

// Read implements io.Reader.
func (s *skipper) Read(p []byte) (int, error) {
	for buf := make([]byte, min(s.left, 32<<10)); s.left > 0; {
		n, err := s.body.Read(buf[:min(s.left, int64(len(buf)))])
		s.left -= int64(n)
		s.skipped.Add(int64(n))
		if errors.Is(err, io.EOF) && s.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("skip to where the partial ends: %w", err)
		}
	}
	return s.body.Read(p)
}

// PassedOver is how many bytes were skipped.
func (s *skipper) PassedOver() int64 { return s.skipped.Load() }

// Close implements io.Closer.
func (s *skipper) Close() error { return s.body.Close() }

// accept classifies an answer.
func accept(resp *http.Response, offset int64) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("%w: content encoding %q", ErrAnswer, e)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusPartialContent:
		cr := resp.Header.Get("Content-Range")
		if first, ok := firstByte(cr); !ok || first != offset {
			return fmt.Errorf("%w: content range %q, want it from %d", ErrAnswer, cr, offset)
		}
		return nil
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w: %s", ErrNotFound, resp.Status)
	case http.StatusForbidden, http.StatusUnauthorized:
		return fmt.Errorf("%w: %s", ErrForbidden, resp.Status)
	}
	err := fmt.Errorf("%w: %s", ErrAnswer, resp.Status)
	if wait := retryAfter(resp.Header.Get("Retry-After")); wait > 0 {
		return &RetryAfter{Wait: wait, Err: err}
	}
	return err
}

// firstByte reads N of "bytes N-M/T".
func firstByte(contentRange string) (int64, bool) {
	rest, ok := strings.CutPrefix(contentRange, "bytes ")
	first, _, cut := strings.Cut(rest, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, ok && cut && err == nil
}

// retryAfter reads seconds; the date form needs a clock that devices lack.
func retryAfter(h string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(h), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// MaxMetadata bounds one file of trust metadata.
const MaxMetadata = 5 << 20

// A file of metadata is given up without a byte for MetadataStall, and after
// metadataTime in any case: the caller holds up updates until it has it.
const (
	MetadataStall = 30 * time.Second
	metadataTime  = 10 * time.Minute
)

// HTTPMetadata returns a trust.MetadataSource: GET BASE/tuf/NAME, fs.ErrNotExist
// for 404. It reads at most MaxMetadata and one byte, and gives up with ErrSlow.
func HTTPMetadata(client *http.Client, baseURL string) func(ctx context.Context, name string) ([]byte, error) {
	return HTTPMetadataAt(client, strings.TrimSuffix(baseURL, "/")+"/tuf")
}

// HTTPMetadataAt is HTTPMetadata for GET ADDRESS/NAME. Names go on the wire as
// they are: the role in them is quoted already, as in 3.auto%2Fmeter.json.
func HTTPMetadataAt(client *http.Client, address string) func(ctx context.Context, name string) ([]byte, error) {
	address = strings.TrimSuffix(address, "/")
	return func(ctx context.Context, name string) ([]byte, error) {
		if plain, err := url.PathUnescape(name); err != nil || strings.ContainsAny(name, "/?#") || plain == "" || plain == "." || plain == ".." {
			return nil, fmt.Errorf("ask for %q: no name of metadata: %w", name, fs.ErrNotExist)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		whole := time.AfterFunc(metadataTime, func() { cancel(fmt.Errorf("%w: %s is not here after %s", ErrSlow, name, metadataTime)) })
		defer whole.Stop()
		stall := time.AfterFunc(MetadataStall, func() { cancel(fmt.Errorf("%w: no byte of %s for %s", ErrSlow, name, MetadataStall)) })
		defer stall.Stop()
		b, err := getMetadata(ctx, client, address+"/"+name, func() { stall.Reset(MetadataStall) })
		if err != nil {
			return nil, fmt.Errorf("ask for %s: %w", name, because(ctx, err))
		}
		return b, nil
	}
}

// getMetadata reads one file and calls progress for each piece of it.
func getMetadata(ctx context.Context, client *http.Client, address string, progress func()) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := accept(resp, 0); err != nil {
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return nil, err
	}
	return io.ReadAll(io.LimitReader(&told{resp.Body, progress}, MaxMetadata+1))
}

// told calls progress for each piece that arrived.
type told struct {
	io.Reader
	progress func()
}

// Read implements io.Reader.
func (t *told) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.progress()
	}
	return n, err
}
