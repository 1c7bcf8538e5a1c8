package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

const rootName = "root.json"

// initialise lays down the root that all trust starts from.
func initialise(o options) error {
	b, err := os.ReadFile(o.root)
	if err != nil {
		return err
	}
	files, err := slot.OpenDir(o.metadataDir)
	if err != nil {
		return err
	}
	defer files.Close()
	if _, err := files.ReadFile(rootName); err == nil {
		return fmt.Errorf("%s has a trusted root already: remove the folder to begin anew", o.metadataDir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := trust.NewClient(slot.NewMem(), b); err != nil {
		return fmt.Errorf("%s: %w", o.root, err)
	}
	return files.WriteFile(rootName, b)
}

// refresh brings the metadata up to date.
func refresh(ctx context.Context, o options) error {
	files, err := slot.OpenDir(o.metadataDir)
	if err != nil {
		return err
	}
	defer files.Close()
	_, err = open(ctx, files, o)
	return err
}

// open refreshes the client whose state is in files, for the targets asked for,
// and writes copies of what it trusts.
func open(ctx context.Context, files slot.Files, o options) (*trust.Client, error) {
	root, err := files.ReadFile(rootName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no trusted root: run skein-tuf init first", o.metadataDir)
	}
	if err != nil {
		return nil, err
	}
	client, err := trust.NewClient(files, root)
	if err != nil {
		return nil, err
	}
	err = client.Refresh(ctx, fetch.HTTPMetadataAt(http.DefaultClient, o.metadataURL), o.now, o.targets...)
	return client, errors.Join(err, export(files, client))
}

// export writes what is trusted under the names that TUF has for it.
func export(files slot.Files, client *trust.Client) error {
	trusted := client.Trusted()
	for _, name := range slices.Sorted(maps.Keys(trusted)) {
		if have, err := files.ReadFile(name); err == nil && string(have) == string(trusted[name]) {
			continue
		}
		if err := files.WriteFile(name, trusted[name]); err != nil {
			return err
		}
	}
	return nil
}

// download fetches each target in turn.
func download(ctx context.Context, o options, stdout io.Writer) error {
	files, err := slot.OpenDir(o.metadataDir)
	if err != nil {
		return err
	}
	defer files.Close()
	client, err := open(ctx, files, o)
	if err != nil {
		return err
	}
	prefixed, err := consistent(client.Trusted()[rootName])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.targetDir, 0o755); err != nil {
		return err
	}
	for _, name := range o.targets {
		info, err := client.Target(name)
		if err != nil {
			return err
		}
		file := filepath.Join(o.targetDir, strings.ReplaceAll(url.QueryEscape(name), "+", "%20"))
		if whole(file, info) {
			fmt.Fprintf(stdout, "%s: is there already\n", file)
			continue
		}
		d := downloader{files: files, address: address(o.targetURL, info, prefixed)}
		if err := d.fetch(ctx, info, file); err != nil {
			return fmt.Errorf("download %s: %w", name, err)
		}
		fmt.Fprintf(stdout, "%s: %d bytes\n", file, info.Length)
	}
	return nil
}

// consistent reports whether the repository puts hashes into the names of files.
func consistent(root []byte) (bool, error) {
	var r struct {
		Signed struct {
			ConsistentSnapshot bool `json:"consistent_snapshot"`
		} `json:"signed"`
	}
	err := json.Unmarshal(root, &r)
	return r.Signed.ConsistentSnapshot, err
}

// address is where the repository keeps a target.
func address(base string, info trust.TargetInfo, prefixed bool) string {
	dir, name := path.Split(info.Path)
	if prefixed {
		name = info.Digest.Hex() + "." + name
	}
	u := url.URL{Path: dir + name} // quotes what an address must not hold
	return strings.TrimSuffix(base, "/") + "/" + u.EscapedPath()
}

// whole reports whether the file has the signed length and hash.
func whole(file string, info trust.TargetInfo) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != info.Length {
		return false
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false
	}
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))) == info.Digest
}

// downloader brings one file through the store of blobs below the metadata, so
// that what was cut off goes on where it ended.
type downloader struct {
	files   slot.Files
	address string
}

func (d downloader) fetch(ctx context.Context, info trust.TargetInfo, file string) error {
	store := blob.NewStore(d.files)
	f := fetch.Fetcher{Store: store, Attempts: 4, BaseWait: 200 * time.Millisecond, MaxWait: 10 * time.Second,
		Source: fetch.HTTPAt(http.DefaultClient, func(ota.Digest) string { return d.address })}
	if err := f.Fetch(ctx, manifest.Descriptor{MediaType: "application/octet-stream", Digest: info.Digest, Size: info.Length}); err != nil {
		return err
	}
	if err := place(ctx, store, info.Digest, file); err != nil {
		return err
	}
	return store.Delete(info.Digest)
}

// place copies a blob to a file that appears whole or not at all.
func place(ctx context.Context, store *blob.Store, d ota.Digest, file string) (err error) {
	in, _, err := store.Open(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp, err := os.CreateTemp(filepath.Dir(file), ".skein-tuf-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err := io.Copy(tmp, in); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
