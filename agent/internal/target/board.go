package target

import (
	_ "embed" // the tables
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed boards.tsv
var boardsTSV string

//go:embed chips.tsv
var chipsTSV string

//go:embed jetpack.tsv
var jetpackTSV string

type boardRow struct {
	id, name, product, chip string
	dla, ramGiB             int
	known                   bool
}

type chipRow struct{ compatible, chip, sm string }

type releaseRow struct{ l4t, jetpack, cuda, tensorrt string }

type tables struct {
	boards   []boardRow
	chips    map[string]chipRow
	releases []releaseRow
}

// rows splits a table with so many columns; # begins a comment, - is empty.
func rows(name, text string, columns int) ([][]string, error) {
	var out [][]string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		cells := strings.Split(line, "\t")
		if len(cells) != columns {
			return nil, fmt.Errorf("read table %s: %q has %d columns, want %d", name, line, len(cells), columns)
		}
		for i, c := range cells {
			if c == "-" {
				cells[i] = ""
			}
		}
		out = append(out, cells)
	}
	return out, nil
}

func readTables() (*tables, error) {
	t := &tables{chips: map[string]chipRow{}}
	list, err := rows("boards.tsv", boardsTSV, 6)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		b := boardRow{id: c[0], name: c[1], product: c[2], chip: c[3], known: true}
		if b.dla, err = strconv.Atoi(c[4]); err == nil {
			b.ramGiB, err = strconv.Atoi(c[5])
		}
		if err != nil {
			return nil, fmt.Errorf("read table boards.tsv: %s: %w", b.id, err)
		}
		t.boards = append(t.boards, b)
	}
	if list, err = rows("chips.tsv", chipsTSV, 3); err != nil {
		return nil, err
	}
	for _, c := range list {
		t.chips[c[0]] = chipRow{c[0], c[1], c[2]}
	}
	if list, err = rows("jetpack.tsv", jetpackTSV, 4); err != nil {
		return nil, err
	}
	for _, c := range list {
		t.releases = append(t.releases, releaseRow{c[0], c[1], c[2], c[3]})
	}
	return t, nil
}

// release returns the JetPack of an L4T release.
func (t *tables) release(l4t string) (releaseRow, bool) {
	i := slices.IndexFunc(t.releases, func(r releaseRow) bool { return l4t == r.l4t || strings.HasPrefix(l4t, r.l4t+".") })
	if i < 0 {
		return releaseRow{}, false
	}
	return t.releases[i], true
}

func (t *tables) board(id string) (boardRow, bool) {
	i := slices.IndexFunc(t.boards, func(b boardRow) bool { return b.id == id })
	if i < 0 {
		return boardRow{id: id}, false
	}
	return t.boards[i], true
}

var (
	moduleRE = regexp.MustCompile(`p(\d{4})-(\d{4})`)
	specRE   = regexp.MustCompile(`(?m)^(?:TNSPEC|COMPATIBLE_SPEC)\s+(\d{4})-\d*-(\d{4})-`)
	boardsRE = regexp.MustCompile(`(\d{4}):(\d{4})`)
)

// board names the module: by the specification that the bootloader was flashed
// for, else by the device tree, in which modules of one family may share an id;
// memory tells those apart.
func (p *prober) board(chip string) boardRow {
	ours := func(b boardRow) bool { return chip == "" || b.chip == chip }
	if g := specRE.FindStringSubmatch(p.text("etc/nv_boot_control.conf")); g != nil {
		if b, ok := p.tab.board("p" + g[1] + "-" + g[2]); ok && ours(b) {
			return b
		}
	}
	var unknown boardRow
	for _, id := range p.boardIDs() {
		b, ok := p.tab.board(id)
		switch {
		case ok && ours(b):
			return p.byMemory(b)
		case !ok && p.moduleFamily(id, chip):
			unknown = b // a new module of a family that is known
		case !ok && unknown.id == "":
			unknown = b
		}
	}
	return unknown
}

// boardIDs lists what the device tree says, most telling first. In a compatible
// the module stands behind the carrier.
func (p *prober) boardIDs() []string {
	var out []string
	add := func(list [][]string) {
		slices.Reverse(list)
		for _, g := range list {
			if id := "p" + g[1] + "-" + g[2]; !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	for _, c := range p.compatible() {
		add(moduleRE.FindAllStringSubmatch(c, -1))
	}
	add(moduleRE.FindAllStringSubmatch(p.text("proc/device-tree/nvidia,dtsfilename"), -1))
	add(boardsRE.FindAllStringSubmatch(p.text("proc/device-tree/nvidia,boardids"), -1))
	return out
}

// moduleFamily reports whether the table has another module of this number.
func (p *prober) moduleFamily(id, chip string) bool {
	number, _, _ := strings.Cut(id, "-")
	return slices.ContainsFunc(p.tab.boards, func(b boardRow) bool {
		return strings.HasPrefix(b.id, number+"-") && (chip == "" || b.chip == chip)
	})
}

// byMemory takes the module of the same number that has the memory of this
// machine, when the one that the device tree names has not.
func (p *prober) byMemory(b boardRow) boardRow {
	kib := p.memoryKiB()
	if kib == 0 {
		return b
	}
	gib := int(moduleGiB(kib))
	if gib == b.ramGiB {
		return b
	}
	number, _, _ := strings.Cut(b.id, "-")
	for _, other := range p.tab.boards {
		if strings.HasPrefix(other.id, number+"-") && other.chip == b.chip && other.ramGiB == gib {
			return other
		}
	}
	return b
}
