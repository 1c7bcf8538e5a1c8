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

// listening starts a server of files that an environment variable names, with
// {address} in its arguments replaced, and returns the address once it answers.
func listening(t *testing.T, variable string, env []string, args ...string) (address string) {
	t.Helper()
	bin := os.Getenv(variable)
	if bin == "" {
		t.Skipf("%s names no program (make test-fetch builds it)", variable)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	for i, a := range args {
		args[i] = strings.NewReplacer("{address}", address, "{port}", port).Replace(a)
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			c.Close()
			return address
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("%s ended", bin)
		case <-deadline:
			t.Fatalf("%s does not listen", bin)
		}
	}
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
	address := listening(t, "SKEIN_VERSITYGW", []string{"ROOT_ACCESS_KEY=skein", "ROOT_SECRET_KEY=skeinsecret"},
		"--port", "{address}", "--iam-dir", t.TempDir(), "posix", data)
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

func TestGCS(t *testing.T) {
	data := t.TempDir()
	want := content(1 << 20)
	if err := os.MkdirAll(filepath.Join(data, "models"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "models", "meter.onnx"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	address := listening(t, "SKEIN_FAKE_GCS", nil, "-scheme", "http", "-host", "127.0.0.1", "-port", "{port}", "-data", data, "-backend", "memory", "-public-host", "127.0.0.1:{port}")
	env := []string{"STORAGE_EMULATOR_HOST=http://" + address}
	const base = "gcs::https://www.googleapis.com/storage/v1/models/"
	out := filepath.Join(t.TempDir(), "f")
	if o := start(t, env, "--out", out, base+"meter.onnx"); o.code != exitOK || o.result.SHA256 != hexSum(want) {
		t.Fatalf("got %+v", o)
	}
	if o := start(t, env, "--out", out+"2", base+"none.onnx"); o.code != exitRefused {
		t.Errorf("not there: got %+v", o)
	}
	if o := start(t, env, "--out", out+"3", "--limit", "1000", base+"meter.onnx"); o.code != exitContent {
		t.Errorf("longer than the limit: got %+v", o)
	}
}
