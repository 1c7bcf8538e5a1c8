package target

import (
	"context"
	"regexp"
	"strconv"
	"strings"
)

var (
	statusRE  = regexp.MustCompile(`^pmode:(\d+)`)
	modelRE   = regexp.MustCompile(`<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)\s*>`)
	queryRE   = regexp.MustCompile(`NV Power Mode(?:\[\d+\])?:\s*(\S+)`)
	defaultRE = regexp.MustCompile(`<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>`)
)

// Mode returns the name of the power mode in force; ids mean different things
// on different modules. It is empty where there are none.
func (p *prober) Mode(ctx context.Context) string {
	conf := p.text("etc/nvpmodel.conf")
	names := map[int]string{}
	for _, g := range modelRE.FindAllStringSubmatch(conf, -1) {
		if id, err := strconv.Atoi(g[1]); err == nil {
			names[id] = g[2]
		}
	}
	byID := func(re *regexp.Regexp, text string) string {
		if g := re.FindStringSubmatch(text); g != nil {
			if id, err := strconv.Atoi(g[1]); err == nil {
				return names[id]
			}
		}
		return ""
	}
	if name := byID(statusRE, p.text("var/lib/nvpmodel/status")); name != "" {
		return name
	}
	if p.o.Run != nil {
		if out, err := p.o.Run(ctx, "nvpmodel", "-q"); err == nil {
			if name := ParseModeQuery(string(out)); name != "" {
				return name
			}
		}
	}
	return byID(defaultRE, conf)
}

// ParseModeQuery finds the mode's name in what nvpmodel -q prints, between
// whatever else it says.
func ParseModeQuery(text string) string {
	for line := range strings.Lines(text) {
		if g := queryRE.FindStringSubmatch(line); g != nil {
			return g[1]
		}
	}
	return ""
}
