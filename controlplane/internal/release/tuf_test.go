package release

import (
	"io/fs"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// asked is a repository that notes the names it is asked for.
type asked struct {
	Repository
	names []string
}

func (a *asked) Metadata(name string) ([]byte, error) {
	a.names = append(a.names, name)
	if name == "9.root.json" {
		return nil, fs.ErrNotExist
	}
	return []byte("signed"), nil
}

// TestTUFNames: the slash of a delegated role is quoted, in what is asked for
// and in the repository's file name; nothing else has one.
func TestTUFNames(t *testing.T) {
	repo := &asked{}
	h := (&Catalog{cfg: Config{Repository: repo}}).TUF()
	for name, code := range map[string]int{
		"3.auto%2Fmeter.json": 200, "auto%2Fmeter-2.b_c.json": 200, "timestamp.json": 200, "2.snapshot.json": 200, "9.root.json": 404,
		"3.other%2Fmeter.json": 404, "3.auto%2F..%2Fx.json": 404, "..%2Ftimestamp.json": 404, "3.auto%252Fmeter.json": 404, "keys": 404, "3.auto/meter.json": 404,
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "/tuf/"+name, nil))
		if rec.Code != code {
			t.Errorf("%s: %d, want %d", name, rec.Code, code)
		}
	}
	want := map[string]bool{"3.auto%2Fmeter.json": true, "auto%2Fmeter-2.b_c.json": true, "timestamp.json": true, "2.snapshot.json": true, "9.root.json": true}
	got := map[string]bool{}
	for _, name := range repo.names {
		got[name] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
