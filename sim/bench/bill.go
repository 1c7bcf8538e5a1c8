package bench

import (
	"cmp"
	"debug/buildinfo"
	"debug/elf"
	"debug/gosym"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Item is what one module costs in a binary.
type Item struct {
	Module string
	Code   int64 // bytes of machine code
}

// own groups packages of this repository; std those of the language.
const (
	ownModule = "skein itself"
	stdModule = "Go's own library and runtime"

	repository = "github.com/skein-fleet/skein/"
)

var majorRE = regexp.MustCompile(`^v[0-9]+$`)

// Bill says how much machine code each module has in a Go binary, largest
// first. It reads the table of functions, which a stripped binary has too.
// rest is everything that is no code of functions: tables, texts, types.
func Bill(name string) (items []Item, rest int64, err error) {
	f, err := elf.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("read binary: %w", err)
	}
	defer f.Close()
	info, err := buildinfo.ReadFile(name)
	if err != nil {
		return nil, 0, fmt.Errorf("read binary: %w", err)
	}
	text, lines := f.Section(".text"), f.Section(".gopclntab")
	if text == nil || lines == nil {
		return nil, 0, fmt.Errorf("read binary %s: it has no table of functions", name)
	}
	raw, err := lines.Data()
	if err != nil {
		return nil, 0, fmt.Errorf("read binary: %w", err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(raw, text.Addr))
	if err != nil {
		return nil, 0, fmt.Errorf("read binary: %w", err)
	}
	var modules []string
	for _, d := range info.Deps {
		modules = append(modules, d.Path)
	}
	sums := map[string]int64{}
	var code int64
	for _, fn := range table.Funcs {
		n := int64(fn.End - fn.Entry)
		sums[moduleOf(fn.PackageName(), info.Main.Path, modules)] += n
		code += n
	}
	for _, m := range slices.Sorted(maps.Keys(sums)) {
		items = append(items, Item{m, sums[m]})
	}
	slices.SortStableFunc(items, func(a, b Item) int { return cmp.Compare(b.Code, a.Code) })
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			rest += int64(p.Filesz)
		}
	}
	return items, rest - code, nil
}

// moduleOf finds the module of a package; in symbols, dots of the last element
// of a path are escaped.
func moduleOf(pkg, main string, modules []string) string {
	pkg = strings.ReplaceAll(pkg, "%2e", ".")
	best := ""
	for _, m := range modules {
		if (pkg == m || strings.HasPrefix(pkg, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	host, _, dotted := strings.Cut(pkg, "/")
	switch {
	case strings.HasPrefix(pkg, repository) || best == "" && (pkg == "main" || main != "" && strings.HasPrefix(pkg, main)):
		return ownModule
	case best != "":
		return best
	case dotted && strings.Contains(host, "."): // a binary that does not name its modules
		parts := strings.Split(pkg, "/")
		n := min(len(parts), 3)
		if n < len(parts) && majorRE.MatchString(parts[n]) {
			n++
		}
		return strings.Join(parts[:n], "/")
	}
	return stdModule
}

// bill prints what the largest modules cost.
func (r *agentRun) bill(name string) error {
	items, rest, err := Bill(name)
	if err != nil {
		return err
	}
	r.o.Progress("bill of %s, MB of machine code:", name)
	var small int64
	for i, x := range items {
		if i >= 14 {
			small += x.Code
			continue
		}
		r.o.Progress("  %6.2f  %s", float64(x.Code)/1e6, x.Module)
		r.figures = append(r.figures, figure("agent_code "+x.Module, float64(x.Code)/1e6, "MB"))
	}
	r.o.Progress("  %6.2f  %d smaller ones", float64(small)/1e6, max(0, len(items)-14))
	r.o.Progress("  %6.2f  tables, types and texts of all", float64(rest)/1e6)
	return nil
}
