package tap

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/proto/gen/inference"
)

func TestHTTP(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 100)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	if st, err := os.Stat(b.path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v %v", st, err)
	}
	for _, path := range []string{"/v2/models/meter/infer", "/v2/models/meter/versions/3/infer"} {
		code, body := b.ask("POST", path, inferBody("q", 5))
		if code != 200 || !strings.Contains(body, `"data":[105,0]`) || !strings.Contains(body, `"id":"q"`) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for path, want := range map[string]int{
		"/v2/models/meter/versions/4/infer": 404, "/v2/models/other/infer": 404, "/v2/models/other/versions/3/infer": 404,
	} {
		if code, body := b.ask("POST", path, inferBody("q", 5)); code != want || !strings.Contains(body, "not served here") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for _, path := range []string{"/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/meter", "/v2/models/meter/ready", "/v2/models/meter/versions/3/config", "/v2/models/meter/stats"} {
		if code, body := b.ask("GET", path, ""); code != 200 || !strings.Contains(body, "meter") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := b.ask("POST", "/v2/models/meter/infer", "{"); code != 400 {
		t.Errorf("bad JSON: %d", code)
	}
	var s Snapshot // an answer is counted when it was sent
	until(t, "six counted requests", func() bool { s = b.tap.Snapshot(); return counted(s) == 6 })
	if len(s.Counts) != 2 || s.Counts[1].Outcomes["ok"] != 2 || s.Counts[1].Outcomes["invalid"] != 1 || s.Counts[0].Outcomes["invalid"] != 3 {
		t.Errorf("%+v", s)
	}
	if q := s.Counts[1].Quantile(0.5); q <= 0 || q > 10*time.Second {
		t.Errorf("median %s", q)
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

// counted is how many requests were counted in all.
func counted(s Snapshot) (n int64) {
	for _, c := range s.Counts {
		for _, k := range c.Outcomes {
			n += k
		}
	}
	return n
}

// TestNames: a server that knows the model by another name and version.
func TestNames(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "inner", "1", 0)
	b.fleet.load("a", endpoint(m, "meter", "7"))
	b.fleet.use("a")
	for _, path := range []string{"/v2/models/meter/infer", "/v2/models/meter/versions/7/infer"} {
		code, body := b.ask("POST", path, inferBody("q", 5))
		want := `{"model_name":"meter","model_version":"7","id":"q","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[5,0]}]}`
		if code != 200 || body != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if _, ok := m.paths.Load("POST /v2/models/inner/versions/1/infer"); !ok {
		t.Error("the server was asked under another path")
	}
	if _, body := b.ask("GET", "/v2/models/meter", ""); body != `{"name":"meter","versions":["7"],"x":{"name":"inner"}}` {
		t.Error(body)
	}
	if code, _ := b.ask("POST", "/v2/models/inner/infer", inferBody("q", 5)); code != 404 {
		t.Errorf("the server's own name: %d", code)
	}
	for _, version := range []string{"", "7"} {
		r, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", version, "q", 5))
		if err != nil || r.GetModelName() != "meter" || r.GetModelVersion() != "7" || r.GetId() != "q" || r.GetOutputs()[0].GetContents().GetFp32Contents()[0] != 5 {
			t.Errorf("%v %v", r, err)
		}
	}
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "1", "q", 5)); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the server's own version: %v", err)
	}
	s, err := b.rpc.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(inferRPC("meter", "7", "s", 1)); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Receive(); err != nil || r.GetInferResponse().GetModelName() != "meter" || r.GetInferResponse().GetModelVersion() != "7" {
		t.Errorf("%v %v", r, err)
	}
	if err := errors.Join(s.CloseRequest(), s.CloseResponse()); err != nil {
		t.Error(err)
	}
}

func TestBinaryNames(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "inner", "1", 0)
	head, tail := `{"model_name":"inner","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}`, "\x00\x00\x80\x3f"
	m.handle = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set(binaryHeader, strconv.Itoa(len(head)))
		w.Header().Set("Content-Length", strconv.Itoa(len(head)+len(tail)))
		io.WriteString(w, head+tail)
		return true
	}
	b.fleet.load("a", endpoint(m, "a-much-longer-name", "12"))
	b.fleet.use("a")
	resp, err := b.plain.Post("http://tap/v2/models/a-much-longer-name/infer", "application/octet-stream", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(strings.Replace(head, `"inner"`, `"a-much-longer-name"`, 1), `"1"`, `"12"`, 1)
	if n, _ := strconv.Atoi(resp.Header.Get(binaryHeader)); n != len(want) || string(body) != want+tail {
		t.Errorf("%d %q", n, body)
	}
}

func TestGRPC(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 100)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	ctx, info := connect.NewClientContext(t.Context())
	r, err := b.rpc.ModelInfer(ctx, inferRPC("meter", "", "q", 5))
	if err != nil || r.GetOutputs()[0].GetContents().GetFp32Contents()[0] != 105 {
		t.Fatalf("%v %v", r, err)
	}
	if got := info.ResponseTrailer().Get("X-Trailer"); got != "t3" {
		t.Errorf("trailer %q", got)
	}
	for _, q := range []*inference.ModelInferRequest{inferRPC("meter", "4", "", 1), inferRPC("other", "", "", 1)} {
		if _, err := b.rpc.ModelInfer(t.Context(), q); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%s %s: %v", q.GetModelName(), q.GetModelVersion(), err)
		}
	}
	if live, err := b.rpc.ServerLive(t.Context(), &inference.ServerLiveRequest{}); err != nil || !live.GetLive() {
		t.Errorf("%v %v", live, err)
	}
	if ready, err := b.rpc.ModelReady(t.Context(), &inference.ModelReadyRequest{Name: "meter"}); err != nil || !ready.GetReady() {
		t.Errorf("%v %v", ready, err)
	}
	for name, err := range map[string]error{
		"load":   second(b.rpc.RepositoryModelLoad(t.Context(), &inference.RepositoryModelLoadRequest{ModelName: "x"})),
		"unload": second(b.rpc.RepositoryModelUnload(t.Context(), &inference.RepositoryModelUnloadRequest{ModelName: "x"})),
		"index":  second(b.rpc.RepositoryIndex(t.Context(), &inference.RepositoryIndexRequest{})),
	} {
		if connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

func second[T any](_ T, err error) error { return err }

func TestStream(t *testing.T) {
	b := newBench(t, Limits{})
	first, next := startModel(t, "meter", "1", 100), startModel(t, "meter", "2", 200)
	b.fleet.load("a", endpoint(first, "meter", "1"))
	b.fleet.load("b", endpoint(next, "meter", "2"))
	b.fleet.use("a")
	s, err := b.rpc.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if i == 10 {
			b.fleet.use("b")
		}
		if err := s.Send(inferRPC("meter", "", fmt.Sprint(i), float32(i))); err != nil {
			t.Fatal(err)
		}
		r, err := s.Receive()
		want := fmt.Sprint(1 + i/10)
		if err != nil || r.GetInferResponse().GetModelVersion() != want || r.GetInferResponse().GetId() != fmt.Sprint(i) {
			t.Fatalf("%d: %v %v", i, r, err)
		}
	}
	// The one before is let go while the stream goes on.
	until(t, "release of the old server", func() bool { b.fleet.mu.Lock(); defer b.fleet.mu.Unlock(); return b.fleet.pinned["a"] == 0 })
	if err := s.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	failing, err := b.rpc.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := failing.Send(inferRPC("meter", "", "fail", 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := failing.Receive(); connect.CodeOf(err) != connect.CodeDataLoss || !strings.Contains(err.Error(), "as asked") {
		t.Error(err)
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

// TestSwitch: what asks all the time is always answered, by a version that
// served while it asked.
func TestSwitch(t *testing.T) {
	b := newBench(t, Limits{})
	first, next := startModel(t, "meter", "1", 0), startModel(t, "meter", "2", 0)
	b.fleet.load("a", endpoint(first, "meter", "1"))
	b.fleet.load("b", endpoint(next, "meter", "2"))
	b.fleet.use("a")
	var stop atomic.Bool
	var wg sync.WaitGroup
	var asked atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				asked.Add(1)
				if i%2 == 0 {
					if code, body := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 1)); code != 200 {
						t.Errorf("%d %s", code, body)
						return
					}
					continue
				}
				version := fmt.Sprint(1 + n%2)
				r, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", version, "q", 1))
				if err != nil || r.GetModelVersion() != version {
					t.Errorf("%v %v", r, err)
					return
				}
			}
		})
	}
	for i := range 50 {
		b.fleet.use([]string{"b", "a"}[i%2])
		before := asked.Load()
		until(t, "requests", func() bool { return asked.Load() > before+3 || stop.Load() })
	}
	stop.Store(true)
	wg.Wait()
	if first.answered.Load() == 0 || next.answered.Load() == 0 {
		t.Errorf("%d %d", first.answered.Load(), next.answered.Load())
	}
}

// TestRestart: a server that ended is connected to again; before it is there,
// requests wait for it.
func TestRestart(t *testing.T) {
	b := newBench(t, Limits{WaitServer: 10 * time.Second})
	old := startModel(t, "meter", "1", 0)
	b.fleet.load("a", endpoint(old, "meter", "1"))
	b.fleet.use("a")
	if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 1)); code != 200 {
		t.Fatal(code)
	}
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", 1)); err != nil {
		t.Fatal(err)
	}
	old.srv.Close()
	b.fleet.use("none")
	var wg sync.WaitGroup
	wg.Go(func() {
		if code, body := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 1)); code != 200 {
			t.Errorf("%d %s", code, body)
		}
	})
	wg.Go(func() {
		if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", 1)); err != nil {
			t.Error(err)
		}
	})
	until(t, "waiting requests", func() bool { return b.tap.Snapshot().InFlight == 2 })
	old.listen(t, old.addr) // on the same port
	b.fleet.use("a")
	wg.Wait()
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

// TestBroken: an answer that breaks off is never taken for a whole one, and a
// request is not sent again.
func TestBroken(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "1", 0)
	var asked atomic.Int64
	m.handle = func(w http.ResponseWriter, r *http.Request) bool {
		asked.Add(1)
		if r.Header.Get("X-How") == "silent" {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Length", "1000000")
		w.Write(make([]byte, 500_000))
		panic(http.ErrAbortHandler)
	}
	b.fleet.load("a", endpoint(m, "meter", "1"))
	b.fleet.use("a")
	for _, how := range []string{"silent", "half"} {
		req, _ := http.NewRequest("POST", "http://tap/v2/models/meter/infer", strings.NewReader("x"))
		req.Header.Set("X-How", how)
		resp, err := b.plain.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if how == "silent" && (resp.StatusCode != 502 || err != nil) || how == "half" && (err == nil || n >= 1_000_000) {
			t.Errorf("%s: %d %d %v", how, resp.StatusCode, n, err)
		}
	}
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

func TestAddress(t *testing.T) {
	for addr, ok := range map[string]bool{"unix:/run/x.sock": true, "127.0.0.1:0": true, "[::1]:8000": true, "localhost:1": true,
		"unix:x.sock": false, "0.0.0.0:80": false, ":80": false, "example.com:80": false, "x": false} {
		if err := CheckAddress(addr); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
