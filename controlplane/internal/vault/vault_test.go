package vault

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSealOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.key")
	v, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v %v", info.Mode(), err)
	}
	again, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := v.Seal("camera", []byte("s3cret")), v.Seal("camera", []byte("s3cret"))
	if bytes.Equal(a, b) || bytes.Contains(a, []byte("s3cret")) {
		t.Error("sealing is not randomised or does not hide")
	}
	if got, err := again.Open("camera", a); err != nil || string(got) != "s3cret" {
		t.Errorf("open: %q, %v", got, err)
	}
	if _, err := v.Open("other", a); !errors.Is(err, ErrSealed) {
		t.Errorf("opened under another name: %v", err)
	}
	a[len(a)-1] ^= 1
	if _, err := v.Open("camera", a); !errors.Is(err, ErrSealed) {
		t.Errorf("opened a changed value: %v", err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path); err == nil {
		t.Error("a short key was accepted")
	}
}
