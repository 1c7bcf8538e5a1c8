package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/proto/gen/inference"
)

// TapOptions say how the tap is measured.
type TapOptions struct {
	Self        []string // command whose "bench tap-server" and "bench tap-proxy" are the children
	Nginx       string   // binary of the peer; empty measures none
	Rate        int      // requests per second
	Rounds      int      // slices of each way, in turn
	Slice       time.Duration
	Switches    int // of the version, under load
	SwitchRate  int // requests per second meanwhile
	SwitchEvery time.Duration
	Progress    func(format string, args ...any)
}

const (
	tapPayload     = 12 << 10
	tapP50Goal     = 80.0  // µs above the direct call
	tapP99Goal     = 300.0 // µs
	tapInferMethod = "/inference.GRPCInferenceService/ModelInfer"
)

// tapWay is one way to the same server.
type tapWay struct {
	name  string
	plain func(ctx context.Context) error
	rpc   func(ctx context.Context) error
	took  map[string][]time.Duration
}

// tapRun is one measurement.
type tapRun struct {
	o        TapOptions
	dir      string
	children []*exec.Cmd
	figures  []Figure
}

// Tap measures what the tap costs against direct calls to the same server, with
// nginx as a peer, and what a switch of the version costs: nothing.
func Tap(ctx context.Context, o TapOptions) (figures []Figure, err error) {
	dir, err := os.MkdirTemp("", "skein-tap-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &tapRun{o: o, dir: dir}
	defer r.stop()
	if err := r.overhead(ctx); err != nil {
		return r.figures, err
	}
	return r.figures, r.switches(ctx)
}

func (r *tapRun) stop() {
	for _, c := range r.children {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	}
}

func (r *tapRun) add(f Figure) {
	r.figures = append(r.figures, f)
	r.o.Progress("%s", f)
}

// child starts a child and returns the first line that it prints.
func (r *tapRun) child(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, r.o.Self[0], append(append([]string(nil), r.o.Self[1:]...), args...)...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := c.Start(); err != nil {
		return "", fmt.Errorf("start %v: %w", args, err)
	}
	r.children = append(r.children, c)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%v says nothing: %w", args, err)
	}
	return strings.TrimSpace(line), nil
}

func (r *tapRun) overhead(ctx context.Context) error {
	server, err := r.child(ctx, "bench", "tap-server")
	if err != nil {
		return err
	}
	sock := filepath.Join(r.dir, "tap.sock")
	if _, err := r.child(ctx, "bench", "tap-proxy", "--listen", "unix:"+sock, "--to", server); err != nil {
		return err
	}
	ways := []*tapWay{newTapWay("direct", "tcp", server, server), newTapWay("tap", "unix", sock, sock)}
	if r.o.Nginx != "" {
		a, b, err := r.nginx(ctx, server)
		if err != nil {
			return err
		}
		ways = append(ways, newTapWay("nginx", "unix", a, b))
	}
	for round := range r.o.Rounds + 1 {
		for _, w := range ways {
			for kind, f := range map[string]func(context.Context) error{"http": w.plain, "grpc": w.rpc} {
				took, err := r.slice(ctx, f)
				if err != nil {
					return fmt.Errorf("%s over %s: %w", kind, w.name, err)
				}
				if round > 0 { // the first warms up
					w.took[kind] = append(w.took[kind], took...)
				}
			}
		}
	}
	for _, kind := range []string{"http", "grpc"} {
		at := func(w *tapWay, q float64) float64 { return 1000 * percentile(w.took[kind], q) }
		direct50, direct99 := at(ways[0], 0.5), at(ways[0], 0.99)
		r.add(figure("tap_direct_"+kind+"_p50", direct50, "us"))
		r.add(figure("tap_direct_"+kind+"_p99", direct99, "us"))
		for _, w := range ways[1:] {
			p50, p99 := figure("tap_"+kind+"_p50_above_direct", at(w, 0.5)-direct50, "us").atMost(tapP50Goal), figure("tap_"+kind+"_p99_above_direct", at(w, 0.99)-direct99, "us").atMost(tapP99Goal)
			ratio := figure("tap_"+kind+"_p50_ratio", at(w, 0.5)/direct50, "x_direct")
			if w.name != "tap" {
				p50, p99, ratio = figure(w.name+"_"+kind+"_p50_above_direct", p50.Value, "us"), figure(w.name+"_"+kind+"_p99_above_direct", p99.Value, "us"), figure(w.name+"_"+kind+"_p50_ratio", ratio.Value, "x_direct")
			}
			r.add(p50)
			r.add(p99)
			r.add(ratio)
		}
	}
	return nil
}

// slice asks at the rate for a while, each request at its time.
func (r *tapRun) slice(ctx context.Context, ask func(context.Context) error) ([]time.Duration, error) {
	every := time.Second / time.Duration(r.o.Rate)
	n := int(r.o.Slice / every)
	took := make([]time.Duration, 0, n)
	next := time.Now()
	for range n {
		next = next.Add(every)
		time.Sleep(time.Until(next))
		start := time.Now()
		if err := ask(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

func newTapWay(name, network, plain, rpc string) *tapWay {
	dial := func(addr string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	}
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	h1 := &http.Client{Transport: &http.Transport{DialContext: dial(plain), MaxIdleConnsPerHost: 64}}
	h2 := &http.Client{Transport: &http.Transport{DialContext: dial(rpc), Protocols: p}}
	body, frame := bytes.Repeat([]byte{0x3f}, tapPayload), rpcRequest("")
	return &tapWay{name: name, took: map[string][]time.Duration{},
		plain: func(ctx context.Context) error { _, err := askPlain(ctx, h1, "", body); return err },
		rpc:   func(ctx context.Context) error { _, err := askRPC(ctx, h2, frame); return err },
	}
}

// askPlain sends a request with one binary tensor and returns the answer.
func askPlain(ctx context.Context, c *http.Client, version string, payload []byte) (string, error) {
	head := fmt.Sprintf(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"parameters":{"binary_data_size":%d}}]}`, len(payload)/4, len(payload))
	path := "http://tap/v2/models/meter/infer"
	if version != "" {
		path = "http://tap/v2/models/meter/versions/" + version + "/infer"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, io.MultiReader(strings.NewReader(head), bytes.NewReader(payload)))
	if err != nil {
		return "", err
	}
	req.ContentLength = int64(len(head) + len(payload))
	req.Header.Set("Inference-Header-Content-Length", fmt.Sprint(len(head)))
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, b)
	}
	return string(b), err
}

func rpcRequest(version string) []byte {
	b, err := proto.Marshal(&inference.ModelInferRequest{ModelName: "meter", ModelVersion: version,
		Inputs:           []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "FP32", Shape: []int64{1, tapPayload / 4}}},
		RawInputContents: [][]byte{bytes.Repeat([]byte{0x3f}, tapPayload)}})
	if err != nil {
		panic(err) // a fixed message
	}
	return rpcFrame(b)
}

func rpcFrame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// askRPC sends one call and returns the version that answered.
func askRPC(ctx context.Context, c *http.Client, frame []byte) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://tap"+tapInferMethod, bytes.NewReader(frame))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if s := resp.Trailer.Get("Grpc-Status"); s != "0" {
		return "", fmt.Errorf("gRPC status %q, %s: %.200s", s, resp.Status, b)
	}
	var m inference.ModelInferResponse
	if len(b) < 5 {
		return "", errors.New("no answer")
	}
	err = proto.Unmarshal(b[5:], &m)
	return m.GetModelVersion(), err
}

// nginx starts the peer with the two sockets of a proxy and returns them.
func (r *tapRun) nginx(ctx context.Context, server string) (plain, rpc string, err error) {
	plain, rpc = filepath.Join(r.dir, "n1.sock"), filepath.Join(r.dir, "n2.sock")
	conf := filepath.Join(r.dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/error.log;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 64m; client_body_buffer_size 128k; keepalive_requests 10000000;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  upstream plain { server %[2]s; keepalive 32; keepalive_requests 10000000; }
  upstream rpc { server %[2]s; keepalive 32; keepalive_requests 10000000; }
  server { listen unix:%[3]s; location / { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://plain; } }
  server { listen unix:%[4]s http2; location / { grpc_pass grpc://rpc; } }
}
`, r.dir, server, plain, rpc)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", "", err
	}
	c := exec.CommandContext(ctx, r.o.Nginx, "-c", conf, "-e", filepath.Join(r.dir, "error.log"))
	if err := c.Start(); err != nil {
		return "", "", fmt.Errorf("start nginx: %w", err)
	}
	r.children = append(r.children, c)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", rpc)
		if err == nil {
			return plain, rpc, conn.Close()
		}
		if time.Now().After(end) {
			raw, _ := os.ReadFile(filepath.Join(r.dir, "error.log"))
			return "", "", fmt.Errorf("nginx does not listen: %.500s", raw)
		}
	}
}

// TapServer is the model server of the measurement: it reads a request and
// answers with its version, over both protocols, until ctx ends.
func TapServer(ctx context.Context, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	return serveVersion(ctx, l, "1")
}

func serveVersion(ctx context.Context, l net.Listener, version string) error {
	answer, err := proto.Marshal(&inference.ModelInferResponse{ModelName: "meter", ModelVersion: version,
		Outputs:           []*inference.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: "FP32", Shape: []int64{1, 10}}},
		RawOutputContents: [][]byte{make([]byte, 40)}})
	if err != nil {
		return err
	}
	frame := rpcFrame(answer)
	text := fmt.Sprintf(`{"model_name":"meter","model_version":%q,"outputs":[{"name":"y","datatype":"FP32","shape":[1,10],"data":[0,0,0,0,0,0,0,0,0,1]}]}`, version)
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: p, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if r.URL.Path != tapInferMethod {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, text)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(frame)
		w.Header().Set("Grpc-Status", "0")
	})}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// TapProxy is the tap alone, in front of one server.
func TapProxy(ctx context.Context, out io.Writer, listen, to string) error {
	v := &versions{}
	v.use(version{runtime.Endpoint{ID: "1", HTTP: to, GRPC: to, Model: "meter", ReleaseModel: "meter", Version: "1", ReleaseVersion: "1"}})
	return agent.ServeTap(ctx, v, agent.TapOptions{Listen: listen, Listening: func(a net.Addr) { fmt.Fprintln(out, a) }})
}

type version struct{ e runtime.Endpoint }

// versions is a runtime of which one version serves.
type versions struct {
	serving atomic.Pointer[version]
}

func (v *versions) use(to version) { v.serving.Store(&to) }

// Acquire returns what serves.
func (v *versions) Acquire(context.Context, string) (runtime.Endpoint, func(), error) {
	return v.serving.Load().e, func() {}, nil
}

// switches changes the version again and again under load.
func (r *tapRun) switches(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	all := make([]version, 2)
	for i := range all {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		n, addr := fmt.Sprint(i+1), l.Addr().String()
		wg.Go(func() { _ = serveVersion(ctx, l, n) })
		all[i] = version{runtime.Endpoint{ID: n, HTTP: addr, GRPC: addr, Model: "meter", ReleaseModel: "meter", Version: n, ReleaseVersion: n}}
	}
	v := &versions{}
	v.use(all[0])
	sock := filepath.Join(r.dir, "switch.sock")
	ready := make(chan struct{})
	failed := make(chan error, 1)
	wg.Go(func() {
		failed <- agent.ServeTap(ctx, v, agent.TapOptions{Listen: "unix:" + sock, Listening: func(net.Addr) { close(ready) }})
	})
	select {
	case <-ready:
	case err := <-failed:
		return err
	}
	c := r.load(ctx, v, all, sock)
	r.add(figure("tap_switches", float64(r.o.Switches), "switches"))
	r.add(figure("tap_switch_requests_per_second", c.rate, "/s").atLeast(0.95 * float64(r.o.SwitchRate)))
	r.add(figure("tap_switch_requests", float64(c.asked), "requests"))
	r.add(figure("tap_switch_failed", float64(c.failed), "requests").atMost(0))
	r.add(figure("tap_switch_wrong_version", float64(c.wrong), "requests").atMost(0))
	if c.why != nil {
		r.o.Progress("first failure: %v", c.why)
	}
	return ctx.Err()
}

// switched is what happened to the requests under switches.
type switched struct {
	asked, failed, wrong int64
	rate                 float64
	why                  error
}

// span is what served at some time: of the last switches.
type span struct {
	mu   sync.Mutex // guards what follows
	at   []time.Time
	whom []string
}

func (s *span) note(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.whom = append(s.at, time.Now()), append(s.whom, version)
}

// served says whether a version served at some moment between two times.
func (s *span) served(version string, from, to time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, at := range s.at {
		ends := i+1 == len(s.at) || !s.at[i+1].Before(from)
		if s.whom[i] == version && !at.After(to) && ends {
			return true
		}
	}
	return false
}

// load asks at the rate, over both protocols, while the version is switched. A
// right answer is one of a version that served between the request and it.
func (r *tapRun) load(ctx context.Context, v *versions, all []version, sock string) (c switched) {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}
	h1 := &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64}}
	h2 := &http.Client{Transport: &http.Transport{DialContext: dial, Protocols: p}}
	payload, frame := bytes.Repeat([]byte{0x3f}, tapPayload), rpcRequest("")
	var times span
	times.note("1")
	var asked, failed, wrong atomic.Int64
	var why atomic.Pointer[error]
	one := func(n int) {
		var got string
		var err error
		start := time.Now()
		if n%2 == 0 {
			if got, err = askPlain(ctx, h1, "", payload); err == nil {
				_, got, _ = strings.Cut(got, `"model_version":"`)
				got, _, _ = strings.Cut(got, `"`)
			}
		} else {
			got, err = askRPC(ctx, h2, frame)
		}
		end := time.Now()
		asked.Add(1)
		switch {
		case err != nil:
			failed.Add(1)
			why.CompareAndSwap(nil, &err)
		case !times.served(got, start, end):
			wrong.Add(1)
		}
	}
	jobs := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for n := range jobs {
				one(n)
			}
		})
	}
	begun := time.Now()
	next, every := begun, time.Second/time.Duration(r.o.SwitchRate)
	perSwitch := int(r.o.SwitchEvery / every)
	for n := 0; n < r.o.Switches*perSwitch && ctx.Err() == nil; n++ {
		next = next.Add(every)
		time.Sleep(time.Until(next))
		jobs <- n
		if n%perSwitch == perSwitch/2 {
			to := (n/perSwitch + 1) % 2
			times.note(all[to].e.ReleaseVersion) // before: it may answer from here on
			v.use(all[to])
		}
	}
	close(jobs)
	wg.Wait()
	c = switched{asked: asked.Load(), failed: failed.Load(), wrong: wrong.Load()}
	c.rate = float64(c.asked) / time.Since(begun).Seconds()
	if e := why.Load(); e != nil {
		c.why = *e
	}
	return c
}
