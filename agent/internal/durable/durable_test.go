package durable

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota/slot"
)

type value struct {
	A string
	N uint64
}

func TestReadFindsTheCopy(t *testing.T) {
	f := slot.NewMem()
	var got value
	if _, err := Read(f, "d/v.json", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("nothing written: %v", err)
	}
	want := value{"x", 1 << 60}
	if err := errors.Join(Write(f, "d/v.json", want), WriteCopy(f, "d/v.json", want)); err != nil {
		t.Fatal(err)
	}
	whole, err := f.ReadFile("d/v.json")
	if err != nil {
		t.Fatal(err)
	}
	if damaged, err := Read(f, "d/v.json", &got); damaged || err != nil || got != want {
		t.Fatalf("%+v %v %v", got, damaged, err)
	}
	// Every single damaged byte is noticed, also one that leaves JSON whole.
	for i := range whole {
		bad := []byte(string(whole))
		bad[i] ^= 1
		if err := f.WriteFile("d/v.json", bad); err != nil {
			t.Fatal(err)
		}
		got = value{}
		if damaged, err := Read(f, "d/v.json", &got); !damaged || err != nil || got != want {
			t.Fatalf("byte %d, %s: %+v %v %v", i, bad, got, damaged, err)
		}
	}
	if err := f.Remove("d/v.json"); err != nil {
		t.Fatal(err)
	}
	if damaged, err := Read(f, "d/v.json", &got); !damaged || err != nil || got != want {
		t.Errorf("file gone: %+v %v %v", got, damaged, err)
	}
	if err := f.WriteFile("d/v.json.copy", whole[:9]); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile("d/v.json", whole[:len(whole)-1]); err != nil {
		t.Fatal(err)
	}
	got = value{A: "kept"}
	if damaged, err := Read(f, "d/v.json", &got); !damaged || !errors.Is(err, ErrDamaged) || got.A != "kept" {
		t.Errorf("both damaged: %+v %v %v", got, damaged, err)
	}
	if raw, err := f.ReadFile("d/v.json.damaged"); err != nil || !strings.HasPrefix(string(whole), string(raw)) {
		t.Errorf("not set aside: %q, %v", raw, err)
	}
}

// TestReadOlderForm: a file from before there was a checksum.
func TestReadOlderForm(t *testing.T) {
	f := slot.NewMem()
	if err := f.WriteFile("v", []byte(`{"A":"y","N":3}`)); err != nil {
		t.Fatal(err)
	}
	var got value
	if damaged, err := Read(f, "v", &got); damaged || err != nil || got != (value{"y", 3}) {
		t.Errorf("%+v %v %v", got, damaged, err)
	}
}
