package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// versitygw starts an S3 server on a folder.
func versitygw(t *testing.T, data string) (address string) {
	t.Helper()
	bin := os.Getenv("SKEIN_VERSITYGW")
	if bin == "" {
		t.Skip("SKEIN_VERSITYGW does not name the versitygw program (make test-fetch builds it)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	cmd := exec.Command(bin, "--port", address, "--iam-dir", t.TempDir(), "posix", data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=skein", "ROOT_SECRET_KEY=skeinsecret")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
			return address
		}
		time.Sleep(50 * time.Millisecond) // until it listens
	}
	t.Fatal("versitygw does not listen")
	return ""
}

func TestS3(t *testing.T) {
	data := t.TempDir()
	want := content(1 << 20)
	if err := os.MkdirAll(filepath.Join(data, "models"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "models", "meter.onnx"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	address := versitygw(t, data)
	source := func(key, secret string) string {
		return fmt.Sprintf("s3::http://%s/models/%s?aws_access_key_id=skein&aws_access_key_secret=%s&region=us-east-1", address, key, secret)
	}
	out := filepath.Join(t.TempDir(), "f")
	if o := start(t, nil, "--out", out, source("meter.onnx", "skeinsecret")); o.code != exitOK || o.result.SHA256 != hexSum(want) {
		t.Fatalf("got %+v", o)
	}
	for says, src := range map[string]string{"NoSuchKey": source("none.onnx", "skeinsecret"), "403": source("meter.onnx", "wrong")} {
		if o := start(t, nil, "--out", out+"2", src); o.code != exitRefused || !strings.Contains(o.stderr, says) {
			t.Errorf("%s: got %+v", says, o)
		}
	}
	if o := start(t, nil, "--out", out+"3", "--limit", "1000", source("meter.onnx", "skeinsecret")); o.code != exitContent {
		t.Errorf("longer than the limit: got %+v", o)
	}
}
