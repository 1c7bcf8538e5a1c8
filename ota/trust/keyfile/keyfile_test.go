package keyfile

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCreateOpen(t *testing.T) {
	if testing.Short() {
		t.Skip("passphrases are slow under the race detector")
	}
	path := filepath.Join(t.TempDir(), "alice.key")
	pub, err := Create(path, "alice", []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	key, err := Open(path, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if !pub.Key.Equal(key.Public()) {
		t.Error("opened another key")
	}
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, key.Seed()) {
		t.Errorf("the private key lies open: %v", err)
	}
	got, err := ReadPublic(path + ".pub")
	if err != nil || got.Name != "alice" || !got.Key.Equal(pub.Key) {
		t.Errorf("public half %+v, %v", got, err)
	}
	if _, err := Open(path, []byte("wrong horse")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	if _, err := Create(path, "alice", []byte("correct horse")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwrote a key: %v", err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("the key changed: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	if testing.Short() {
		t.Skip("passphrases are slow under the race detector")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "k")
	if _, err := Create(path, "a", []byte("short")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("short passphrase: %v", err)
	}
	if _, err := Create(path, "a\nb", []byte("long enough")); err == nil {
		t.Error("a name of two lines")
	}
	if _, err := Create(path, "a", []byte("long enough")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPublic(path); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), ".pub") {
		t.Errorf("private for public: %v", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"empty": nil, "text": []byte("hello"), "twice": append(bytes.Clone(raw), raw...), "cut": raw[:len(raw)/2],
		"huge": bytes.Repeat([]byte("x"), maxFile+1)} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(p, []byte("long enough")); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ReadPublic(p); !errors.Is(err, ErrFormat) {
			t.Errorf("%s as public: %v", name, err)
		}
	}
	// One bit of the ciphertext.
	block, _ := pem.Decode(raw)
	block.Bytes[len(block.Bytes)-40] ^= 1
	p := filepath.Join(dir, "bit")
	if err := os.WriteFile(p, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(p, []byte("long enough")); err == nil {
		t.Error("opened a damaged key")
	}
}
