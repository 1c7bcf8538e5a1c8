// Command conformance puts ota/trust behind the command line of the TUF
// conformance suite (github.com/theupdateframework/tuf-conformance, CLIENT-CLI.md).
// It is a test program: nothing imports it, nothing ships it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

type names []string

// String and Set implement flag.Value.
func (n *names) String() string     { return strings.Join(*n, ",") }
func (n *names) Set(s string) error { *n = append(*n, s); return nil }

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var targets names
	dir := flag.String("metadata-dir", "", "")
	base := flag.String("metadata-url", "", "")
	targetDir := flag.String("target-dir", "", "")
	targetURL := flag.String("target-base-url", "", "")
	flag.Var(&targets, "target-name", "")
	flag.Parse()
	if flag.Arg(0) == "init" {
		b, err := os.ReadFile(flag.Arg(1))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*dir, "root.json"), b, 0o600)
	}
	root, err := os.ReadFile(filepath.Join(*dir, "root.json"))
	if err != nil {
		return err
	}
	files, err := slot.OpenDir(*dir)
	if err != nil {
		return err
	}
	client, err := trust.NewClient(files, root)
	if err != nil {
		return err
	}
	now := time.Now()
	if fake := os.Getenv("SKEIN_FAKE_TIME"); fake != "" {
		if now, err = time.Parse("2006-01-02 15:04:05.999999-07:00", fake); err != nil {
			return err
		}
	}
	err = client.Refresh(ctx, source(*base), now)
	if err := errors.Join(err, export(files, *dir)); err != nil || flag.Arg(0) == "refresh" {
		return err
	}
	for _, name := range targets {
		if err := download(ctx, client, *targetURL, *targetDir, name); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, address string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusForbidden {
		return nil, fmt.Errorf("%s: %w", address, fs.ErrNotExist)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", address, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, limit+1))
}

func source(base string) trust.MetadataSource {
	return func(ctx context.Context, name string) ([]byte, error) {
		return get(ctx, strings.TrimSuffix(base, "/")+"/"+name, 5_000_000)
	}
}

// export lays the trusted files out as the suite wants to see them.
func export(files slot.Files, dir string) error {
	var set map[string][]byte
	if b, err := files.ReadFile("trust/set.json"); err == nil {
		if err := json.Unmarshal(b, &set); err != nil {
			return err
		}
	}
	if b, err := files.ReadFile("trust/root.json"); err == nil {
		set = maps.Clone(set)
		if set == nil {
			set = map[string][]byte{}
		}
		set["root"] = b
	}
	for name, b := range set {
		if err := os.WriteFile(filepath.Join(dir, name+".json"), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func download(ctx context.Context, c *trust.Client, base, dir, name string) error {
	info, err := c.Target(name)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, url.PathEscape(name))
	if have, err := os.ReadFile(file); err == nil && ota.DigestOf(have) == info.Digest {
		return nil
	}
	at := filepath.Dir(name)
	for _, remote := range []string{filepath.Join(at, info.Digest.Hex()+"."+filepath.Base(name)), name} {
		b, err := get(ctx, strings.TrimSuffix(base, "/")+"/"+remote, info.Length)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if int64(len(b)) != info.Length || ota.DigestOf(b) != info.Digest {
			return fmt.Errorf("%s: wrong length or hash", name)
		}
		return os.WriteFile(file, b, 0o600)
	}
	return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}
