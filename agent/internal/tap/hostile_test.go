package tap

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
)

// TestControl: no spelling of a path reaches model control.
func TestControl(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 0)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	for _, path := range []string{
		"/v2/repository/index", "/v2/repository/models/meter/load", "/v2/repository/models/meter/unload", "/v2/Repository/index",
		"/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/status", "/v2/logging", "/v2/trace/setting",
		"/v2/models/meter/trace/setting",
		"//v2/repository/index", "/v2//repository/index", "/v2/./repository/index", "/v2/models/../repository/index", "/v2/models/meter/../../repository/index",
		"/v2/%72epository/index", "/v2/repositor%79/index", "/v2/models%2f..%2frepository/index", "/v2/models/%2e%2e/repository/index", "/v2/models/..%2frepository/index",
		"/v2/models/meter/infer/../../../repository/index", "/v2/models/meter%2finfer", "/v2/models/meter/versions/..%2f..%2frepository/infer", "/v2/models/%252e%252e/infer",
		"/v2\\repository\\index", "/v2/repository;x/index", "/v2/models/meter;/infer", "/v2/models/meter%00/infer", "/v2/models/meter%0d%0aX:y/infer", "/./v2", "/v2/models//infer", "/v2/models/meter/", "/metrics", "/", "/v1/models/meter", "/V2/models/meter", "*",
	} {
		for _, method := range []string{"GET", "POST"} {
			resp := raw(t, b, method+" "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
			if resp.StatusCode != 403 && resp.StatusCode != 404 && resp.StatusCode != 400 {
				t.Errorf("%s %s: %s", method, path, resp.Status)
			}
		}
	}
	m.paths.Range(func(k, _ any) bool {
		t.Errorf("the server was asked %s", k)
		return true
	})
	for _, line := range []string{"DELETE /v2 HTTP/1.1", "POST /v2/health/live HTTP/1.1", "GET /v2/models/meter/infer HTTP/1.1"} {
		if resp := raw(t, b, line+"\r\nHost: x\r\n\r\n"); resp.StatusCode != 405 {
			t.Errorf("%s: %s", line, resp.Status)
		}
	}
	for _, path := range []string{"http://other/v2/repository/index", "http://other/v2/models/..%2frepository/infer"} {
		if resp := raw(t, b, "POST "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode < 400 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// raw sends bytes and reads one answer.
func raw(t *testing.T, b *bench, text string) *http.Response {
	t.Helper()
	c, err := net.Dial("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.80q: %v", text, err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

// TestSmuggling: what two readers could part differently reaches no server as it came.
func TestSmuggling(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 0)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	hidden := "POST /v2/repository/models/meter/unload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	for _, head := range []string{
		"Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: +5", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity",
		"Content-Length : 5", "X: a\rb", "X\x00: a", "X y: z", "Content-Length: 0\r\n Transfer-Encoding: chunked", "Connection: Content-Length\r\nContent-Length: 0",
	} {
		resp := raw(t, b, "POST /v2/models/meter/infer HTTP/1.1\r\nHost: x\r\n"+head+"\r\n\r\n0\r\n\r\n"+hidden)
		if resp.StatusCode < 400 {
			t.Errorf("%q: %s", head, resp.Status)
		}
	}
	m.paths.Range(func(k, _ any) bool {
		if !strings.HasSuffix(k.(string), "/infer") {
			t.Errorf("the server was asked %s", k)
		}
		return true
	})
}

// TestHostile: an application that sends too much, too slowly, or nothing that
// makes sense gets an error or its connection closed, and others their answers.
func TestHostile(t *testing.T) {
	b := newBench(t, Limits{Body: 1 << 20, Memory: 2 << 20, BodyTime: 300 * time.Millisecond, Conns: 40})
	m := startModel(t, "meter", "3", 0)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	infer := "POST /v2/models/meter/infer HTTP/1.1\r\nHost: x\r\n"
	for name, one := range map[string]struct {
		text string
		want int
	}{
		"huge header":      {infer + "X: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", 431},
		"many headers":     {infer + strings.Repeat("X: y\r\n", 20_000) + "\r\n", 431},
		"announced length": {infer + "Content-Length: 1048577\r\n\r\n", 413},
		"endless body":     {infer + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10000\r\n"+strings.Repeat("a", 65536)+"\r\n", 17), 413},
		"slow body":        {infer + "Content-Length: 100\r\n\r\n{", 408},
		"no HTTP":          {"hello\r\n\r\n", 400},
		"TLS":              {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400},
		"bad JSON":         {infer + "Content-Length: 2\r\n\r\n{{", 400},
		"expects":          {infer + "Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n", 413},
	} {
		resp := raw(t, b, one.text)
		if resp.StatusCode != one.want && !(one.want == 431 && resp.StatusCode == 400) {
			t.Errorf("%s: %s, want %d", name, resp.Status, one.want)
		}
	}
	c, err := net.Dial("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A header that never ends holds a connection and nothing else.
	io.WriteString(c, "POST /v2/models/meter/infer HTT")
	var big [5]byte
	binary.BigEndian.PutUint32(big[1:], 1<<30)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	h2 := &http.Client{Transport: &http.Transport{DialContext: b.dial, Protocols: p}}
	for name, one := range map[string]struct {
		body []byte
		code string
	}{"a frame of 1 GiB": {big[:], "8"}, "junk": {[]byte{0, 0, 0, 0, 3, 0xff, 0xff, 0xff}, "3"}, "cut": {[]byte{0, 0, 0, 0, 9, 1}, "3"}, "two": {append(rpcBytes(t), rpcBytes(t)...), "3"}, "none": {nil, "3"},
		"unknown compression": {[]byte{1, 0, 0, 0, 1, 0}, "3"}} {
		req, _ := http.NewRequest("POST", "http://tap"+methodInfer, bytes.NewReader(one.body))
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Grpc-Encoding", "odd")
		resp, err := h2.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get("Grpc-Status"); got != one.code {
			t.Errorf("%s: status %q %q, want %s", name, got, resp.Header.Get("Grpc-Message"), one.code)
		}
	}
	for _, path := range []string{"/inference.GRPCInferenceService/RepositoryModelLoad", "/inference.GRPCInferenceService/SystemSharedMemoryRegister", "/inference.GRPCInferenceService/TraceSetting",
		"/inference.GRPCInferenceService/LogSettings", "/inference.GRPCInferenceService/repositorymodelload", "/inference.GRPCInferenceService/%52epositoryModelLoad", "/x/../inference.GRPCInferenceService/RepositoryModelLoad"} {
		req, _ := http.NewRequest("POST", "http://tap"+path, bytes.NewReader(rpcBytes(t)))
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := h2.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Grpc-Status"); got != "7" && got != "12" {
			t.Errorf("%s: %q", path, got)
		}
	}
	// More connections than there may be: the rest is closed, the first go on.
	var held []net.Conn
	for range 100 {
		if c, err := net.Dial("unix", b.path); err == nil {
			held = append(held, c)
		}
	}
	for _, c := range held {
		c.Close()
	}
	until(t, "an answer after the flood", func() bool {
		resp, err := b.plain.Post("http://tap/v2/models/meter/infer", "application/json", strings.NewReader(inferBody("q", 1)))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", 1)); err != nil {
		t.Error(err)
	}
	if n := b.tap.gate.memory.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

func rpcBytes(t *testing.T) []byte {
	t.Helper()
	return frameOf([]byte("\x0a\x05meter"))
}

// TestStreamsFlood: requests that are given up at once, again and again, end
// their connection at most.
func TestStreamsFlood(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 0)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	c, err := net.Dial("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go io.Copy(io.Discard, c)
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // settings
	// :method POST, :scheme http, :path of the call, :authority x
	head := append([]byte{0x83, 0x86, 0x44, byte(len(methodInfer))}, methodInfer...)
	head = append(head, 0x41, 1, 'x')
	for i := range 20_000 {
		id := uint32(2*i + 1)
		f := append([]byte{0, byte(len(head) >> 8), byte(len(head)), 1, 4}, binary.BigEndian.AppendUint32(nil, id)...)
		f = append(append(f, head...), 0, 0, 4, 3, 0)
		f = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(f, id), 8)
		if _, err := c.Write(f); err != nil {
			break // it was ended
		}
	}
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", 1)); err != nil {
		t.Error(err)
	}
}

// TestCompressed: names are read inside compressed messages.
func TestCompressed(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "inner", "1", 100)
	b.fleet.load("a", endpoint(m, "meter", "7"))
	b.fleet.use("a")
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	svc := newRPC(&http.Client{Transport: &http.Transport{DialContext: b.dial, Protocols: p}}, connect.WithSendGzip())
	big := inferRPC("meter", "7", "q", 1)
	big.Inputs[0].Contents.Fp32Contents = make([]float32, 200_000)
	r, err := svc.ModelInfer(t.Context(), big)
	if err != nil || r.GetModelVersion() != "7" || r.GetOutputs()[0].GetContents().GetFp32Contents()[0] != 100 {
		t.Errorf("%v %v", r, err)
	}
	if _, err := svc.ModelInfer(t.Context(), inferRPC("meter", "8", "q", 1)); connect.CodeOf(err) != connect.CodeNotFound {
		t.Error(err)
	}
}

// FuzzNames: whatever bytes come, nothing panics, and what has new names reads back.
func FuzzNames(f *testing.F) {
	f.Add([]byte("\x0a\x05meter\x12\x013"))
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, _, ok := namesOf(msg); !ok {
			return
		}
		name, version, ok := namesOf(withNames(msg, "a", "b"))
		if !ok || name != "a" || version != "b" {
			t.Errorf("%q %q %v", name, version, ok)
		}
	})
}

// FuzzReplaceTop: what is no object is left as it is.
func FuzzReplaceTop(f *testing.F) {
	f.Add([]byte(`{"name":"a","x":{"name":"b"}}`))
	f.Add([]byte(`{"name":"\"`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := replaceTop(in, map[string][]byte{"name": []byte(`"z"`)})
		if !bytes.Contains(in, []byte(`"name"`)) && !bytes.Equal(in, out) {
			t.Errorf("%q became %q", in, out)
		}
	})
}
