package bench

import (
	"os"
	"strings"
	"testing"
)

// TestBill reads this test binary.
func TestBill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	items, rest, err := Bill(self)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	var code int64
	for i, x := range items {
		module := x.Module
		if strings.HasPrefix(module, "google.golang.org/") { // test binaries name no modules
			module = "google.golang.org/protobuf"
		}
		got[module] += x.Code
		code += x.Code
		if i > 0 && x.Code > items[i-1].Code {
			t.Error("the bill is not in order")
		}
	}
	for _, m := range []string{stdModule, ownModule, "google.golang.org/protobuf"} {
		if got[m] < 50_000 {
			t.Errorf("%s costs %d bytes", m, got[m])
		}
	}
	if st, err := os.Stat(self); err != nil || code < 1<<20 || rest < 1<<20 || code+rest > st.Size() {
		t.Errorf("%d bytes of code and %d others in a file of %d", code, rest, st.Size())
	}
	if _, _, err := Bill("bill.go"); err == nil {
		t.Error("a text has a bill")
	}
}
