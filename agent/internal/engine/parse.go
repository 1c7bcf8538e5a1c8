package engine

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/agent/internal/target"
)

// Parser reads the output of one run, line by line.
type Parser struct {
	r     Result
	block *Stats // of the releases that print a block for each distribution
	// Runs of releases 5 and 6, which print averages only.
	runs               int
	gpuSum, hostSum    float64
	gpuWorst, averages float64
}

// NewParser returns one for one run.
func NewParser() *Parser { return &Parser{} }

// Result returns what was read so far.
func (p *Parser) Result() Result {
	r := p.r
	if p.runs > 0 && r.GPU == nil && r.Latency == nil {
		r.GPU = &Stats{Mean: p.gpuSum / float64(p.runs)}
		if p.gpuWorst > 0 {
			r.GPU.setPercentile(p.averages, p.gpuWorst)
		}
		r.Latency = &Stats{Mean: p.hostSum / float64(p.runs)}
	}
	return r
}

var (
	// What stands before a message: a time, severities and the logger, in any order.
	prefixRE = regexp.MustCompile(`^\s*(?:\[(?:\d{2}/\d{2}/\d{4}-\d{2}:\d{2}:\d{2}|[VIWEF]|TRT|TensorRT|INTERNAL_ERROR|ERROR|WARNING|INFO|VERBOSE)\]\s*)*`)
	levelRE  = regexp.MustCompile(`\[(V|I|W|E|F|ERROR|WARNING|INTERNAL_ERROR)\]`)
	wordRE   = regexp.MustCompile(`^(ERROR|WARNING|INTERNAL_ERROR): `)

	verdictRE = regexp.MustCompile(`^&&&& (RUNNING|PASSED|FAILED|WAIVED) TensorRT\.trtexec(?:\s+\[TensorRT v(\d+)\])?(?:\s+\[b\d+\])?(?:\s+# ?(.*))?`)
	stampRE   = regexp.MustCompile(`^\[\d{2}/\d{2}/\d{4}-\d{2}:\d{2}:\d{2}\]\s*`)

	summaryRE = regexp.MustCompile(`^(Latency|End-to-End Host Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency):\s*(.*)$`)
	statRE    = regexp.MustCompile(`(min|max|mean|median|percentile\(([0-9.]+)%\))\s*=?\s*([0-9.eE+-]+)\s*(ms|us|s)\b`)
	blockRE   = regexp.MustCompile(`^(Host Latency|Enqueue Time|GPU Compute)$`)
	rowRE     = regexp.MustCompile(`^(min|max|mean|median|percentile): ([0-9.eE+-]+) ms(?: at ([0-9.]+)%)?(?: \(end to end ([0-9.eE+-]+) ms(?: at [0-9.]+%)?\))?\s*$`)
	averageRE = regexp.MustCompile(`^Average over \d+ runs is ([0-9.eE+-]+) ms(?: \(host walltime is ([0-9.eE+-]+) ms, ([0-9.]+)% percentile time is ([0-9.eE+-]+)\))?`)

	scalarRE  = regexp.MustCompile(`^(Throughput|throughput|Total Host Walltime|walltime): ([0-9.eE+-]+)`)
	builtRE   = regexp.MustCompile(`^Engine (?:built in|generation completed in) ([0-9.]+) sec`)
	loadedRE  = regexp.MustCompile(`^Engine (?:loaded|deserialized) in ([0-9.]+) sec`)
	sizeRE    = regexp.MustCompile(`^Created engine with size: ([0-9.]+) MiB`)
	peakRE    = regexp.MustCompile(`Peak memory usage .*\bGPU ([0-9.]+) MiB`)
	unstable  = regexp.MustCompile(`GPU compute time is unstable, with coefficient of variance = ([0-9.]+)%`)
	boundRE   = regexp.MustCompile(`^\* Throughput may be bound by ([^.]+?)(?: rather than [^.]*)?\.`)
	versionRE = regexp.MustCompile(`^TensorRT version: (\d+\.\d+\.\d+)`)
	deviceRE  = regexp.MustCompile(`^Selected Device: (.+)$`)
	smRE      = regexp.MustCompile(`^Compute Capability: (\d+\.\d+)`)
)

// Line takes one line.
func (p *Parser) Line(line string) {
	if len(line) > maxLine {
		line = line[:maxLine]
	}
	if g := verdictRE.FindStringSubmatch(stampRE.ReplaceAllString(line, "")); g != nil {
		p.banner(g)
		return
	}
	level, text := split(line)
	if p.times(text) || p.facts(text) || p.placed(text) {
		return
	}
	switch level {
	case "W":
		p.r.Warnings = keep(p.r.Warnings, text)
	case "E":
		p.r.Errors = keep(p.r.Errors, text)
	}
}

// split takes the severity off a line; it is empty, I or V for what is neither
// warning nor error.
func split(line string) (level, text string) {
	head := prefixRE.FindString(line)
	text = strings.TrimSpace(line[len(head):])
	word := ""
	if g := levelRE.FindStringSubmatch(head); g != nil {
		word = g[1]
	}
	if g := wordRE.FindStringSubmatch(text); g != nil {
		word, text = g[1], strings.TrimSpace(text[len(g[0]):])
	}
	switch word {
	case "E", "F", "ERROR", "INTERNAL_ERROR":
		return "E", text
	case "W", "WARNING":
		return "W", text
	}
	return word, text
}

func (p *Parser) banner(g []string) {
	if g[1] != "RUNNING" {
		p.r.Verdict = Verdict(g[1])
	}
	if v := target.InferVersion(g[2]); v != "" {
		p.r.TensorRT = v
	}
	if p.r.Command == "" {
		p.r.Command = clip(strings.TrimSpace(g[3]))
	}
}

// times reads distributions.
func (p *Parser) times(text string) bool {
	if g := summaryRE.FindStringSubmatch(text); g != nil {
		if s := stats(g[2]); s != nil {
			*p.named(g[1]) = s
			return true
		}
	}
	if g := blockRE.FindStringSubmatch(text); g != nil {
		p.block = &Stats{}
		*p.named(g[1]) = p.block
		if g[1] == "Host Latency" {
			p.r.EndToEnd = nil
		}
		return true
	}
	if g := rowRE.FindStringSubmatch(text); g != nil && p.block != nil {
		p.block.row(g[1], g[2], g[3])
		if g[4] != "" {
			if p.r.EndToEnd == nil {
				p.r.EndToEnd = &Stats{}
			}
			p.r.EndToEnd.row(g[1], g[4], g[3])
		}
		return true
	}
	if g := averageRE.FindStringSubmatch(text); g != nil {
		p.average(g)
		return true
	}
	return false
}

func (p *Parser) named(name string) **Stats {
	switch name {
	case "Latency", "Host Latency":
		return &p.r.Latency
	case "End-to-End Host Latency":
		return &p.r.EndToEnd
	case "Enqueue Time":
		return &p.r.Enqueue
	case "H2D Latency":
		return &p.r.H2D
	case "D2H Latency":
		return &p.r.D2H
	}
	return &p.r.GPU // GPU Compute Time, GPU Compute
}

// stats reads one line of a summary, nil when nothing of it is one.
func stats(text string) *Stats {
	s, found := &Stats{}, false
	for _, g := range statRE.FindAllStringSubmatch(text, -1) {
		v, ok := number(g[3])
		if !ok {
			continue
		}
		switch g[4] {
		case "us":
			v /= 1000
		case "s":
			v *= 1000
		}
		found = true
		s.set(g[1], g[2], v)
	}
	if !found {
		return nil
	}
	return s
}

func (s *Stats) row(name, value, percent string) {
	if v, ok := number(value); ok {
		s.set(name, percent, v)
	}
}

func (s *Stats) set(name, percent string, ms float64) {
	switch name {
	case "min":
		s.Min = ms
	case "max":
		s.Max = ms
	case "mean":
		s.Mean = ms
	case "median":
		s.Median = ms
	default:
		if at, ok := number(percent); ok && at <= 100 {
			s.setPercentile(at, ms)
		}
	}
}

func (p *Parser) average(g []string) {
	gpu, ok := number(g[1])
	if !ok {
		return
	}
	p.runs++
	p.gpuSum += gpu
	if host, ok := number(g[2]); ok {
		p.hostSum += host
	}
	if worst, ok := number(g[4]); ok {
		p.gpuWorst = max(p.gpuWorst, worst)
		p.averages, _ = number(g[3])
	}
}

// facts reads single values.
func (p *Parser) facts(text string) bool {
	set := func(re *regexp.Regexp, to *float64) bool {
		g := re.FindStringSubmatch(text)
		if g == nil {
			return false
		}
		if v, ok := number(g[1]); ok {
			*to = v
		}
		return true
	}
	if g := scalarRE.FindStringSubmatch(text); g != nil {
		if v, ok := number(g[2]); ok {
			if strings.EqualFold(g[1], "throughput") {
				p.r.Throughput = v
			} else {
				p.r.WalltimeSeconds = v
			}
		}
		return true
	}
	if set(builtRE, &p.r.BuildSeconds) || set(loadedRE, &p.r.LoadSeconds) || set(sizeRE, &p.r.EngineMiB) || set(peakRE, &p.r.PeakGPUMiB) || set(unstable, &p.r.Variance) {
		return true
	}
	if g := boundRE.FindStringSubmatch(text); g != nil {
		p.r.Bound = keep(p.r.Bound, g[1])
		return true
	}
	for re, to := range map[*regexp.Regexp]*string{versionRE: &p.r.TensorRT, deviceRE: &p.r.Device, smRE: &p.r.SM} {
		if g := re.FindStringSubmatch(text); g != nil {
			*to = clip(strings.TrimSpace(g[1]))
			return true
		}
	}
	return false
}

var (
	candidatesRE = regexp.MustCompile(`^Number of DLA node candidates offloaded\s*:\s*(\d+) out of (\d+)`)
	offloadedRE  = regexp.MustCompile(`^\{?(.+?)\}? successfully offloaded to DLA\.?$`)
	layerRE      = regexp.MustCompile(`^\[(Gpu|Dla|DLA|GPU)\s?Layer\]\s*(.+)$`)
	refusedRE    = regexp.MustCompile(`DLA cores? do(?:es)? not support|[Uu]nsupported on DLA|cannot run on DLA|not supported on DLA|[Ss]witching (?:this layer's device type |layer )?.*to GPU|Falling back to GPU`)
)

// placed reads what runs on the DLA and what does not.
func (p *Parser) placed(text string) bool {
	pl := p.r.Placement
	if pl == nil {
		pl = &Placement{}
	}
	switch {
	case candidatesRE.MatchString(text):
		g := candidatesRE.FindStringSubmatch(text)
		pl.Offloaded, _ = strconv.Atoi(g[1])
		pl.Candidates, _ = strconv.Atoi(g[2])
	case offloadedRE.MatchString(text):
		pl.DLA = keep(pl.DLA, offloadedRE.FindStringSubmatch(text)[1])
	case layerRE.MatchString(text):
		g := layerRE.FindStringSubmatch(text)
		if strings.EqualFold(g[1], "gpu") {
			pl.GPU = keep(pl.GPU, g[2])
		} else {
			pl.DLA = keep(pl.DLA, g[2])
		}
	case refusedRE.MatchString(text):
		pl.Refused = keep(pl.Refused, text)
	default:
		return false
	}
	p.r.Placement = pl
	return true
}
