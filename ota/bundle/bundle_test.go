package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
)

// shelf is a source of blobs in memory that counts what it gave and breaks
// after that many bytes, when breaks is not negative.
type shelf struct {
	blobs  map[ota.Digest][]byte
	given  int64
	breaks int64
	lies   bool
}

// Open implements fetch.Source.
func (s *shelf) Open(_ context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, fetch.ErrNotFound
	}
	b = b[offset : offset+length]
	if s.lies {
		b = bytes.Repeat([]byte("?"), len(b))
	}
	if s.breaks >= 0 {
		left := max(0, s.breaks-s.given)
		if int64(len(b)) > left {
			s.given += left
			return io.NopCloser(io.MultiReader(bytes.NewReader(b[:left]), broken{})), nil
		}
	}
	s.given += int64(len(b))
	return io.NopCloser(bytes.NewReader(b)), nil
}

var errCable = errors.New("the cable is out")

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errCable }

// contents makes a small release and its layers.
func contents(t *testing.T, layers ...int) (*Plan, *shelf) {
	t.Helper()
	s := &shelf{blobs: map[ota.Digest][]byte{}, breaks: -1}
	index := []byte(`{"schemaVersion":2}`)
	desc := manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: ota.DigestOf(index), Size: int64(len(index))}
	c := Contents{Info: Info{Release: "meter@1", Target: "releases/meter/1", Index: desc, Expires: "2026-12-01T00:00:00Z"}, Layout: []manifest.Descriptor{desc},
		Metadata: map[string][]byte{"1.root.json": []byte("{}"), "timestamp.json": []byte(`{"a":1}`)}, Desired: map[string][]byte{"abcd": []byte("cose")}, Small: [][]byte{index}}
	for i, n := range layers {
		b := bytes.Repeat([]byte{byte(i + 1)}, n)
		s.blobs[ota.DigestOf(b)] = b
		c.Info.Layers = append(c.Info.Layers, manifest.BlobRef{Digest: ota.DigestOf(b), Size: int64(n)})
	}
	p, err := NewPlan(c)
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// mem is a File in memory.
type mem struct{ b []byte }

func (m *mem) ReadAt(p []byte, off int64) (int, error) { return bytesAt(m.b).ReadAt(p, off) }
func (m *mem) Sync() error                             { return nil }

func (m *mem) WriteAt(p []byte, off int64) (int, error) {
	if grow := int(off) + len(p) - len(m.b); grow > 0 {
		m.b = append(m.b, make([]byte, grow)...)
	}
	return copy(m.b[off:], p), nil
}

func (m *mem) Truncate(n int64) error {
	m.b = append(m.b, make([]byte, max(0, int(n)-len(m.b)))...)[:n]
	return nil
}

func write(t *testing.T, p *Plan, s *shelf) []byte {
	t.Helper()
	var m mem
	if err := p.Write(t.Context(), &m, 0, s, nil); err != nil {
		t.Fatal(err)
	}
	return m.b
}

func open(b []byte) (*Bundle, error) { return Open(bytesAt(b), int64(len(b))) }

func TestRoundTrip(t *testing.T) {
	p, s := contents(t, 0, 1, 511, 512, 700_000)
	raw := write(t, p, s)
	if int64(len(raw)) != p.Size() {
		t.Errorf("%d bytes, the plan said %d", len(raw), p.Size())
	}
	b, err := open(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(b.Devices(), []string{"abcd"}); d != "" {
		t.Error(d)
	}
	if m, err := b.Metadata(t.Context(), "timestamp.json"); err != nil || string(m) != `{"a":1}` {
		t.Errorf("%q, %v", m, err)
	}
	if _, err := b.Metadata(t.Context(), "2.root.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for d, want := range s.blobs {
		if len(want) == 0 {
			continue
		}
		r, err := b.Open(t.Context(), d, 1, int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want[1:]) {
			t.Errorf("blob %s: %d bytes of %d, %v", d.Short(), len(got), len(want), err)
		}
	}
	// Any tar reader sees an OCI image layout.
	names := map[string]int64{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = h.Size
	}
	if len(names) != 3+2+1+1+len(s.blobs) || names[layoutName] != int64(len(layoutText)) {
		t.Errorf("tar sees %v", names)
	}
	head, err := b.Head()
	if err != nil {
		t.Fatal(err)
	}
	again, err := PlanOf(head)
	if err != nil || !bytes.Equal(again.head, p.head) {
		t.Errorf("a plan read back differs: %v", err)
	}
}

// Wherever a copy stops, the next goes on at that byte and ends with the same file.
func TestResume(t *testing.T) {
	p, s := contents(t, 3000, 1, 70_000)
	want := write(t, p, s)
	rapid.Check(t, func(r *rapid.T) {
		have := rapid.IntRange(0, len(want)).Draw(r, "have")
		m := &mem{b: bytes.Clone(want[:have])}
		spoilt := -1
		if have > 0 && rapid.Bool().Draw(r, "spoil") {
			spoilt = rapid.IntRange(0, have-1).Draw(r, "at")
			m.b[spoilt] ^= 0x40
		}
		s.given = 0
		if err := p.Write(t.Context(), m, int64(have), s, nil); err != nil {
			r.Fatal(err)
		}
		if !bytes.Equal(m.b, want) {
			r.Fatal("the file differs")
		}
		var missing int64
		at := int64(len(p.head))
		for _, l := range p.Info.Layers {
			at += block
			missing += l.Size - min(l.Size, max(0, int64(have)-at))
			at += padded(l.Size)
		}
		if have < len(p.head) {
			missing = 73_001
		}
		if spoilt < 0 && s.given != missing {
			r.Fatalf("%d bytes were fetched, %d were missing", s.given, missing)
		}
	})
}

func TestBrokenCopyGoesOn(t *testing.T) {
	p, s := contents(t, 100_000, 300_000)
	want := write(t, p, s)
	f, err := os.Create(filepath.Join(t.TempDir(), "x.part"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.given = 0
	for s.breaks = 50_000; ; s.breaks += 90_000 {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		var kept int64
		err = p.Write(t.Context(), f, st.Size(), s, func(_, k int64) { kept = k })
		if err == nil {
			break
		}
		if !errors.Is(err, errCable) {
			t.Fatal(err)
		}
		if kept > st.Size() {
			t.Errorf("%d bytes were kept of %d", kept, st.Size())
		}
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs: %v", err)
	}
	if s.given != 400_000 {
		t.Errorf("%d bytes were fetched for 400000", s.given)
	}
}

func TestWrongSourceLeavesNothing(t *testing.T) {
	p, s := contents(t, 3000)
	s.lies = true
	var m mem
	if err := p.Write(t.Context(), &m, 0, s, nil); !errors.Is(err, ErrContent) {
		t.Error(err)
	}
	if len(m.b) != len(p.head) {
		t.Errorf("%d bytes stay, the head has %d", len(m.b), len(p.head))
	}
}

// entry is one file of a hostile archive.
type entry struct {
	name string
	kind byte
	body string
	size int64 // 0: of body
}

func archive(entries ...entry) []byte {
	var out []byte
	for _, e := range entries {
		h := header(e.name, max(e.size, int64(len(e.body))))
		if e.kind != 0 {
			h[156] = e.kind
			copy(h[148:156], fmt.Sprintf("%06o\x00 ", checksum(h)))
		}
		out = append(out, h...)
		out = append(out, e.body...)
		out = append(out, make([]byte, padded(int64(len(e.body)))-int64(len(e.body)))...)
	}
	return append(out, ending[:]...)
}

func TestHostileBundlesAreRefused(t *testing.T) {
	p, s := contents(t, 3000, 4000)
	good := write(t, p, s)
	b, err := open(good)
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.read(infoName, MaxMetadata)
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, to byte) []byte {
		c := bytes.Clone(good)
		c[at] ^= to
		return c
	}
	for _, c := range []struct {
		what string
		raw  []byte
		want error
		says string
	}{
		{"nothing", nil, ErrTruncated, ""},
		{"zeros", make([]byte, 4096), ErrNotBundle, ""},
		{"gzip", append([]byte("\x1f\x8b\x08"), make([]byte, 1000)...), ErrNotBundle, "gzip"},
		{"zstd", append([]byte("\x28\xb5\x2f\xfd"), make([]byte, 1000)...), ErrNotBundle, "zstd"},
		{"a path out of it", archive(entry{name: "../../etc/passwd", body: "x"}), ErrName, "leads out"},
		{"a path out of it from below", archive(entry{name: "blobs/sha256/../../x", body: "x"}), ErrName, "leads out"},
		{"a path from the root", archive(entry{name: "/etc/passwd", body: "x"}), ErrName, "leads out"},
		{"a path of another system", archive(entry{name: `tuf\..\..\x.json`, body: "x"}), ErrName, "leads out"},
		{"a device node", archive(entry{name: "oci-layout", kind: '3'}), ErrKind, "device node"},
		{"a pipe", archive(entry{name: "oci-layout", kind: '6'}), ErrKind, "pipe"},
		{"a symbolic link", archive(entry{name: "tuf/timestamp.json", kind: '2'}), ErrKind, "symbolic link"},
		{"a hard link", archive(entry{name: "tuf/timestamp.json", kind: '1'}), ErrKind, "hard link"},
		{"a folder", archive(entry{name: "tuf", kind: '5'}), ErrKind, "folder"},
		{"an extended header", archive(entry{name: "x", kind: 'x', body: "30 path=../../x\n"}), ErrKind, "extended header"},
		{"a sparse file", archive(entry{name: "oci-layout", kind: 'S'}), ErrKind, "sparse"},
		{"a foreign name", archive(entry{name: "README", body: "x"}), ErrName, "README"},
		{"a name twice", archive(entry{name: "oci-layout", body: "x"}, entry{name: "oci-layout", body: "y"}), ErrName, "twice"},
		{"an endless body", archive(entry{name: "tuf/timestamp.json", size: 1 << 40}), ErrTooLong, "limit"},
		{"a lying length", archive(entry{name: "tuf/timestamp.json", size: 1 << 20}), ErrTruncated, "are left"},
		{"no release", archive(entry{name: "oci-layout", body: "x"}), ErrNotBundle, "has no"},
		{"another version", archive(entry{name: infoName, body: strings.Replace(string(info), `"version": 1`, `"version": 2`, 1)}), ErrNotBundle, "version 2"},
		{"a key twice", archive(entry{name: infoName, body: strings.Replace(string(info), `"version": 1`, `"version": 1, "Version": 1`, 1)}), ErrNotBundle, "twice"},
		{"truncated", good[:len(good)-2000], ErrTruncated, ""},
		{"without its end", good[:len(good)-1024], ErrTruncated, "end is missing"},
		{"with something after it", append(bytes.Clone(good), make([]byte, 512)...), ErrContent, "after byte"},
		{"an altered header", change(len(p.head)+3, 1), ErrNotBundle, ""},
	} {
		if _, err := open(c.raw); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.want, c.says)
		}
	}
	altered, err := open(change(len(p.head)+block+10, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := altered.Verify(t.Context(), nil); !errors.Is(err, ErrContent) {
		t.Errorf("an altered layer: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	index := []byte(`{"schemaVersion":2}`)
	desc := manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: ota.DigestOf(index), Size: int64(len(index))}
	layer := bytes.Repeat([]byte("x"), 600)
	p, err := NewPlan(Contents{Info: Info{Index: desc, Layers: []manifest.BlobRef{{Digest: ota.DigestOf(layer), Size: 600}}}, Layout: []manifest.Descriptor{desc},
		Metadata: map[string][]byte{"timestamp.json": []byte("{}")}, Small: [][]byte{index}})
	if err != nil {
		f.Fatal(err)
	}
	var m mem
	if err := p.Write(context.Background(), &m, 0, &shelf{blobs: map[ota.Digest][]byte{ota.DigestOf(layer): layer}, breaks: -1}, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(m.b)
	f.Add(archive(entry{name: "../x", kind: '2'}))
	f.Add(archive(entry{name: "oci-layout", size: 1 << 33}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := open(raw)
		if err != nil {
			return
		}
		// What opens stays within its bounds.
		for name, s := range b.files {
			if check(name, s.size) != nil || s.at < block || s.at+s.size > int64(len(raw)) {
				t.Errorf("%q at %d of %d bytes in %d", name, s.at, s.size, len(raw))
			}
		}
		_, _ = b.Layout() // must not panic
		_ = b.Verify(t.Context(), nil)
		if head, err := b.Head(); err != nil {
			t.Error(err)
		} else if _, err := OpenHead(bytesAt(head), int64(len(head))); err != nil {
			t.Errorf("its head does not open: %v", err)
		}
	})
}
