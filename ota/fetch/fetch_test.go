package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// server is an HTTP server over in-memory connections, so that it can live in
// a synctest bubble. It counts the body bytes that it sent.
type server struct {
	conns   chan net.Conn
	handler http.HandlerFunc
	sent    atomic.Int64
	asked   atomic.Int64
	srv     *http.Server
	client  *http.Client
	stopped sync.WaitGroup
}

// Accept, Close and Addr implement net.Listener.
func (s *server) Accept() (net.Conn, error) {
	c, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (s *server) Close() error   { return nil }
func (s *server) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func newServer(h http.HandlerFunc) *server {
	s := &server{conns: make(chan net.Conn), handler: h}
	s.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.stopped.Add(1)
		defer s.stopped.Done()
		h(countingWriter{w, &s.sent}, r)
	})}
	s.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case s.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}}
	s.stopped.Go(func() { _ = s.srv.Serve(s) })
	return s
}

func (s *server) stop() {
	s.client.CloseIdleConnections()
	close(s.conns)
	_ = s.srv.Close()
	s.stopped.Wait()
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 31 >> 3)
	}
	return b
}

func descriptor(b []byte) manifest.Descriptor {
	return manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: ota.DigestOf(b), Size: int64(len(b))}
}

// span reads the Range header: first and one past last.
func span(t *testing.T, r *http.Request) (int, int) {
	first, last, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	a, aerr := strconv.Atoi(first)
	b, berr := strconv.Atoi(last)
	if !ok || aerr != nil || berr != nil {
		t.Errorf("range %q", r.Header.Get("Range"))
	}
	return a, b + 1
}

// partial writes the header of a good range answer.
func partial(w http.ResponseWriter, a, b, size int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b-1, size))
	w.WriteHeader(http.StatusPartialContent)
}

// honest serves ranges of b.
func honest(t *testing.T, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/skein/blobs/"+string(ota.DigestOf(b)) {
			http.NotFound(w, r)
			return
		}
		first, last := span(t, r)
		partial(w, first, last, len(b))
		_, _ = w.Write(b[first:last])
	}
}

// run calls test in a bubble with a server, a fetcher on it and its store.
func run(t *testing.T, h http.HandlerFunc, test func(t *testing.T, s *server, f *Fetcher, m *slot.Mem)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(h)
		defer s.stop()
		m := slot.NewMem()
		f := &Fetcher{Store: blob.NewStore(m), Source: HTTP(s.client, "http://cp/")}
		test(t, s, f, m)
	})
}

func check(t *testing.T, f *Fetcher, b []byte) {
	t.Helper()
	if err := f.Store.Verify(t.Context(), ota.DigestOf(b)); err != nil {
		t.Error(err)
	}
}

func TestFetch(t *testing.T) {
	b := content(100_000)
	run(t, honest(t, b), func(t *testing.T, s *server, f *Fetcher, _ *slot.Mem) {
		var last int64
		f.Progress = func(d ota.Digest, have, size int64) {
			if d != ota.DigestOf(b) || have < last || size != int64(len(b)) {
				t.Errorf("progress %d of %d after %d", have, size, last)
			}
			last = have
		}
		for range 2 {
			if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
				t.Fatal(err)
			}
		}
		check(t, f, b)
		if last != int64(len(b)) || f.BytesFetched() != last || s.sent.Load() != last || s.asked.Load() != 1 {
			t.Errorf("progress %d, fetched %d, sent %d in %d answers", last, f.BytesFetched(), s.sent.Load(), s.asked.Load())
		}
		f.Progress = nil
		empty := descriptor(nil)
		if err := f.Fetch(t.Context(), empty); err != nil || s.asked.Load() != 1 {
			t.Errorf("empty blob: %v", err)
		}
	})
}

// TestNoByteTwice: the link breaks after every few bytes and the agent is
// killed now and then; each byte crosses the link once.
func TestNoByteTwice(t *testing.T) {
	b := content(10_000)
	const piece = 700
	h := func(w http.ResponseWriter, r *http.Request) {
		first, last := span(t, r)
		w.Header().Set("Content-Length", strconv.Itoa(last-first))
		partial(w, first, last, len(b))
		_, _ = w.Write(b[first:min(first+piece, last)])
		if first+piece < last {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	run(t, h, func(t *testing.T, s *server, f *Fetcher, m *slot.Mem) {
		begun := time.Now()
		for {
			ctx, kill := context.WithTimeout(t.Context(), 2*time.Second)
			err := f.Fetch(ctx, descriptor(b))
			kill()
			if err == nil {
				break
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			m = m.Restart()
			f = &Fetcher{Store: blob.NewStore(m), Source: f.Source}
		}
		check(t, f, b)
		if s.sent.Load() != int64(len(b)) || s.asked.Load() != (10_000+piece-1)/piece {
			t.Errorf("sent %d bytes in %d answers for %d", s.sent.Load(), s.asked.Load(), len(b))
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("took %s: waits grow although there is progress", took)
		}
	})
}

func TestAttacks(t *testing.T) {
	b := content(5000)
	good := honest(t, b)
	for name, c := range map[string]struct {
		bad  http.HandlerFunc
		want error // nil: Fetch recovers when the source does
	}{
		"endless data": {func(w http.ResponseWriter, r *http.Request) {
			first, _ := span(t, r)
			partial(w, first, len(b), len(b))
			junk := make([]byte, 1<<16)
			for {
				if _, err := w.Write(junk); err != nil {
					return
				}
			}
		}, nil},
		"corrupt": {func(w http.ResponseWriter, r *http.Request) {
			first, last := span(t, r)
			partial(w, first, last, len(b))
			c := bytes.Clone(b[first:last])
			c[len(c)/2] ^= 1
			_, _ = w.Write(c)
		}, nil},
		"truncated": {func(w http.ResponseWriter, r *http.Request) {
			first, last := span(t, r)
			partial(w, first, last, len(b))
			_, _ = w.Write(b[first : first+(last-first)/2])
		}, nil},
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			partial(w, 7, len(b), len(b))
			_, _ = w.Write(b[7:])
		}, nil},
		"no content range": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b)
		}, nil},
		"encoded": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(b)
		}, nil},
		"server error": {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "x", http.StatusInternalServerError) }, nil},
		"not there":    {http.NotFound, ErrNotFound},
		"forbidden":    {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "x", http.StatusForbidden) }, ErrForbidden},
		"unknown":      {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "x", http.StatusUnauthorized) }, ErrForbidden},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			var evil atomic.Bool
			evil.Store(true)
			var always bool
			h := func(w http.ResponseWriter, r *http.Request) {
				if always || evil.Swap(false) {
					c.bad(w, r)
					return
				}
				good(w, r)
			}
			run(t, h, func(t *testing.T, s *server, f *Fetcher, m *slot.Mem) {
				// A source that is always like that: given up, nothing visible,
				// disk use bounded by the signed length.
				always = true
				m.SetFree(20_000)
				err := f.Fetch(t.Context(), descriptor(b))
				if err == nil && name != "truncated" || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("always: got %v, want %v", err, c.want)
				}
				if err != nil && f.Store.Has(ota.DigestOf(b)) {
					t.Error("wrong content is visible")
				}
				if used := 20_000 - m.Free(); used > int64(len(b)) {
					t.Errorf("%d bytes on disk for a blob of %d", used, len(b))
				}
				if c.want != nil && s.asked.Load() != 1 {
					t.Errorf("asked %d times though it is final", s.asked.Load())
				}
				// The next honest answer works.
				always = false
				evil.Store(c.want == nil)
				if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
					t.Errorf("next: %v", err)
				}
				check(t, f, b)
			})
		})
	}
}

// TestEndlessGoodData: what was signed arrives, followed by more: the rest
// stays unread.
func TestEndlessGoodData(t *testing.T) {
	b := content(5000)
	h := func(w http.ResponseWriter, r *http.Request) {
		first, _ := span(t, r)
		partial(w, first, len(b), len(b))
		_, _ = w.Write(b[first:])
		for {
			if _, err := w.Write(make([]byte, 1<<12)); err != nil {
				return
			}
		}
	}
	run(t, h, func(t *testing.T, s *server, f *Fetcher, _ *slot.Mem) {
		if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
			t.Fatal(err)
		}
		check(t, f, b)
		if f.BytesFetched() > int64(len(b))+1 {
			t.Errorf("read %d bytes of %d", f.BytesFetched(), len(b))
		}
	})
}

// TestNoRanges: something on the way ignores the Range header.
func TestNoRanges(t *testing.T) {
	b := content(5000)
	h := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	run(t, h, func(t *testing.T, _ *server, f *Fetcher, _ *slot.Mem) {
		if _, err := f.Store.Append(t.Context(), ota.DigestOf(b), 0, 5000, bytes.NewReader(b[:1234])); err != nil {
			t.Fatal(err)
		}
		if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
			t.Fatal(err)
		}
		check(t, f, b)
	})
}

// TestSlow: a source that drips is given up after a window, one that hangs
// too, and a fast enough one may take hours.
func TestSlow(t *testing.T) {
	b := content(3_000_000)
	drip := func(size int, every time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			first, last := span(t, r)
			partial(w, first, last, len(b))
			for at := first; at < last; at += size {
				if _, err := w.Write(b[at:min(at+size, last)]); err != nil {
					return
				}
				if http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-time.After(every):
				case <-r.Context().Done():
					return
				}
			}
		}
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		slow bool
	}{
		"one byte in ten seconds": {drip(1, 10*time.Second), true},
		"no answer":               {hang, true},
		"2 KiB a second":          {drip(2048, time.Second), false},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			run(t, c.h, func(t *testing.T, s *server, f *Fetcher, _ *slot.Mem) {
				begun := time.Now()
				err := f.Fetch(t.Context(), descriptor(b))
				took := time.Since(begun)
				if c.slow {
					// 8 attempts of 30 s and 7 waits of at most 1, 2, 4 … 64 s.
					if !errors.Is(err, ErrSlow) || took < 8*30*time.Second || took > 8*30*time.Second+127*time.Second+time.Second || s.asked.Load() != 8 {
						t.Errorf("%v after %s, asked %d times", err, took, s.asked.Load())
					}
					return
				}
				if err != nil || s.asked.Load() != 1 || took < 20*time.Minute {
					t.Errorf("%v after %s, asked %d times", err, took, s.asked.Load())
				}
			})
		})
	}
}

func TestRetryAfter(t *testing.T) {
	b := content(100)
	var times []time.Time
	good := honest(t, b)
	h := func(w http.ResponseWriter, r *http.Request) {
		times = append(times, time.Now())
		switch len(times) {
		case 1:
			w.Header().Set("Retry-After", "90")
			http.Error(w, "busy", http.StatusTooManyRequests)
		case 2:
			w.Header().Set("Retry-After", "999999999")
			http.Error(w, "busy", http.StatusServiceUnavailable)
		default:
			good(w, r)
		}
	}
	run(t, h, func(t *testing.T, _ *server, f *Fetcher, _ *slot.Mem) {
		if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{90 * time.Second, maxRetryAfter} {
			if wait := times[i+1].Sub(times[i]); wait < want || wait > want+3*time.Second {
				t.Errorf("wait %d was %s, want %s and a little", i, wait, want)
			}
		}
	})
}

// TestJitter: waits are spread over the whole interval, which doubles.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fetcher{BaseWait: time.Second, MaxWait: 10 * time.Second}
		for attempt, limit := range []time.Duration{1, 2, 4, 8, 10, 10} {
			limit *= time.Second
			low, high := 0, 0
			for range 200 {
				begun := time.Now()
				if err := f.wait(t.Context(), attempt, nil); err != nil {
					t.Fatal(err)
				}
				switch wait := time.Since(begun); {
				case wait > limit:
					t.Fatalf("attempt %d: waited %s, limit %s", attempt, wait, limit)
				case wait < limit/4:
					low++
				case wait > limit*3/4:
					high++
				}
			}
			if low < 20 || high < 20 {
				t.Errorf("attempt %d: %d short and %d long waits of 200", attempt, low, high)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	run(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(t *testing.T, _ *server, f *Fetcher, _ *slot.Mem) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("superseded")
		time.AfterFunc(5*time.Second, func() { cancel(why) })
		begun := time.Now()
		if err := f.Fetch(ctx, descriptor(content(10))); !errors.Is(err, why) || time.Since(begun) != 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// TestLocalErrors: a full disk is not the source's fault and is not tried again.
func TestLocalErrors(t *testing.T) {
	b := content(5000)
	run(t, honest(t, b), func(t *testing.T, s *server, f *Fetcher, m *slot.Mem) {
		m.SetFree(1000)
		if err := f.Fetch(t.Context(), descriptor(b)); !errors.Is(err, slot.ErrDiskFull) || s.asked.Load() != 1 {
			t.Errorf("%v, asked %d times", err, s.asked.Load())
		}
		m.SetFree(100_000)
		before := s.sent.Load()
		if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
			t.Fatal(err)
		}
		if again := s.sent.Load() - before; again != 4000 {
			t.Errorf("%d bytes after the disk had room, want the missing 4000", again)
		}
	})
}

func TestTwoFetchesOfOneBlob(t *testing.T) {
	b := content(200_000)
	run(t, honest(t, b), func(t *testing.T, _ *server, f *Fetcher, _ *slot.Mem) {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		check(t, f, b)
	})
}

// A server that does not do ranges sends everything again over a slow link:
// that is progress too.
func TestSlowServerWithoutRanges(t *testing.T) {
	b := content(200_000)
	h := func(w http.ResponseWriter, _ *http.Request) {
		for part := range slices.Chunk(b, 20_000) {
			<-time.After(10 * time.Second) // 2 kB/s
			if _, err := w.Write(part); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
	run(t, h, func(t *testing.T, _ *server, f *Fetcher, _ *slot.Mem) {
		d := ota.DigestOf(b)
		if _, err := f.Store.Append(t.Context(), d, 0, int64(len(b)), bytes.NewReader(b[:150_000])); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := f.Fetch(t.Context(), manifest.Descriptor{MediaType: "x", Digest: d, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		check(t, f, b)
		if took := time.Since(begun); took != 100*time.Second || f.BytesFetched() != 50_000 {
			t.Errorf("%d bytes in %s, want one transfer", f.BytesFetched(), took)
		}
	})
}

func TestBadDescriptor(t *testing.T) {
	f := &Fetcher{Store: blob.NewStore(slot.NewMem())}
	for _, d := range []manifest.Descriptor{{}, {MediaType: "x", Digest: "sha256:..", Size: 1},
		{MediaType: "x", Digest: ota.DigestOf(nil), Size: -1}, {MediaType: "x", Digest: ota.DigestOf(nil), Size: 1 << 60}} {
		if err := f.Fetch(t.Context(), d); !errors.Is(err, manifest.ErrMalformed) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// TestHTTPAt: files of servers that are not ours.
func TestHTTPAt(t *testing.T) {
	b := content(100_000)
	ours := honest(t, b)
	h := func(w http.ResponseWriter, r *http.Request) {
		if name, ok := strings.CutPrefix(r.URL.Path, "/targets/"); ok {
			r.URL.Path = "/v2/skein/blobs/sha256:" + strings.TrimSuffix(name, ".model")
			ours(w, r)
			return
		}
		http.NotFound(w, r)
	}
	run(t, h, func(t *testing.T, s *server, f *Fetcher, _ *slot.Mem) {
		f.Source = HTTPAt(s.client, func(d ota.Digest) string { return "http://mirror/targets/" + d.Hex() + ".model" })
		if err := f.Fetch(t.Context(), descriptor(b)); err != nil {
			t.Fatal(err)
		}
		check(t, f, b)
	})
}

func TestHTTPMetadata(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tuf/2.root.json":
			http.NotFound(w, r)
		case "/tuf/3.auto/meter.json":
			if r.RequestURI == "/tuf/3.auto%2Fmeter.json" || r.RequestURI == "http://cp/tuf/3.auto%2Fmeter.json" {
				_, _ = io.WriteString(w, "delegated")
			}
		case "/tuf/timestamp.json":
			_, _ = io.WriteString(w, "{}")
		case "/tuf/endless":
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		case "/tuf/stalled", "/tuf/trickle":
			for range 100 {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				wait := 20 * time.Second
				if r.URL.Path == "/tuf/stalled" {
					wait = time.Hour
				}
				select {
				case <-r.Context().Done():
					return
				case <-time.After(wait):
				}
			}
		default:
			http.Error(w, "x", http.StatusBadGateway)
		}
	}
	run(t, h, func(t *testing.T, s *server, _ *Fetcher, _ *slot.Mem) {
		src := HTTPMetadata(s.client, "http://cp")
		if b, err := src(t.Context(), "timestamp.json"); string(b) != "{}" {
			t.Errorf("%q, %v", b, err)
		}
		if b, err := src(t.Context(), "3.auto%2Fmeter.json"); string(b) != "delegated" {
			t.Errorf("a role with a slash: %q, %v", b, err)
		}
		for _, name := range []string{"2.root.json", "", "..", "%2e%2e", "a/timestamp.json", "timestamp.json?x", "timestamp.json#x", "%zz"} {
			if _, err := src(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v", name, err)
			}
		}
		if _, err := src(t.Context(), "x"); !errors.Is(err, ErrAnswer) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("bad gateway: %v", err)
		}
		if b, err := src(t.Context(), "endless"); len(b) != MaxMetadata+1 || err != nil {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		for name, after := range map[string]time.Duration{"stalled": MetadataStall, "trickle": metadataTime} {
			begun := time.Now()
			if _, err := src(t.Context(), name); !errors.Is(err, ErrSlow) || time.Since(begun) != after {
				t.Errorf("%s: %v after %s", name, err, time.Since(begun))
			}
		}
	})
}
