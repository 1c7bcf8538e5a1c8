package tegra

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// samples reads every real line of testdata (sources in SOURCES.md).
func samples(tb testing.TB) []string {
	tb.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no samples: %v", err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
			out = append(out, line)
		}
	}
	return out
}

func TestSamplesHaveNoUnknownTokens(t *testing.T) {
	lines := samples(t)
	if len(lines) < 50 {
		t.Fatalf("%d samples, want at least 50", len(lines))
	}
	for _, line := range lines {
		s := Parse(line)
		if len(s.Unknown) > 0 || s.RAMUsedMB == nil || len(s.CPU) == 0 {
			t.Errorf("%s\nunknown %v, cores %d", line, s.Unknown, len(s.CPU))
		}
	}
}

func TestFormatRoundTrip(t *testing.T) {
	for _, g := range []Grammar{
		{Timestamp: true, Milliwatts: true, Peaks: true, SplitGPC: true, ListGPC: true, ZonesGated: true, SharedClock: true},
		{Timestamp: true, Peaks: true, SplitGPC: true, OldNames: true, ZonesGated: true, SharedClock: true},
	} {
		for _, line := range samples(t) {
			want := Parse(line)
			text := Format(want, g)
			if diff := cmp.Diff(want, Parse(text)); diff != "" {
				t.Errorf("%s\nprinted %s\n%s", line, text, diff)
			}
		}
	}
}

func TestParseValues(t *testing.T) {
	s := Parse("05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,off,5%] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,1300] NVENC 79%@166 NVDEC off VIC 36%@115 NVDLA0 off PVA0_FREQ off APE 174 cpu@52.562C tj@-256C CV0@-256C VDD_GPU_SOC 2412mW/2400mW NC 0mW/0mW NC 1mW/2mW")
	want := Stats{
		Time:      "2026-05-09T18:42:06",
		RAMUsedMB: new(18207.0), RAMTotalMB: new(62841.0), RAMLfb: &Lfb{466, 4096},
		SwapUsedMB: new(86.0), SwapTotalMB: new(31420.0), SwapCachedMB: new(0.0),
		CPU:  []Core{{Pct: new(14.0), MHz: new(2188.0)}, {Off: true}, {Pct: new(5.0)}},
		EMC:  &Engine{Pct: new(3.0), MHz: new(2133.0)},
		GR3D: &GPU{Pct: new(0.0), MHz: []*float64{new(0.0), new(1300.0)}},
		Engines: map[string]Engine{
			"nvenc": {Pct: new(79.0), MHz: new(166.0)}, "nvdec": {Off: true}, "vic": {Pct: new(36.0), MHz: new(115.0)},
			"nvdla0": {Off: true}, "pva0": {Off: true}, "ape": {MHz: new(174.0)},
		},
		TempsC:   map[string]float64{"cpu": 52.562},
		ZonesOff: []string{"tj", "CV0"},
		PowerMW: map[string]Rail{
			"VDD_GPU_SOC": {Now: 2412, Avg: new(2400.0)}, "NC": {Now: 0, Avg: new(0.0)}, "NC#2": {Now: 1, Avg: new(2.0)},
		},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
}

// TestFields holds single fields in every documented and observed form, and
// forms that must stay unknown.
func TestFields(t *testing.T) {
	tests := []struct{ line, want string }{
		// processors
		{`cpu [25%,7%,off,1%]@2218`, `{"cpu":[{"pct":25,"mhz":2218},{"pct":7,"mhz":2218},{"pct":null,"mhz":null,"off":true},{"pct":1,"mhz":2218}],"cpu_mhz":2218,"unknown":[]}`},
		{`CPU [90%@2601, off]`, `{"cpu":[{"pct":90,"mhz":2601},{"pct":null,"mhz":null,"off":true}],"unknown":[]}`},
		{`CPU [101%@2601,bad,3%]`, `{"cpu":[{"pct":null,"mhz":null},{"pct":null,"mhz":null},{"pct":3,"mhz":null}],"unknown":["CPU[0] 101%@2601","CPU[1] bad"],"unknown_count":2}`},
		{`BCPU [1%@345] MCPU [2%@2035]`, `{"cpu":[{"pct":1,"mhz":345,"cluster":"BCPU"},{"pct":2,"mhz":2035,"cluster":"MCPU"}],"unknown":[]}`},
		{`CPU [10%@729,5%@7`, `{"unknown":["CPU [10%@729,5%@7"],"unknown_count":1}`},
		{`CPU [`, `{"unknown":["CPU ["],"unknown_count":1}`},
		{`CPU 216/217`, `{"power_mw":{"CPU":{"now":216,"avg":217}},"unknown":[]}`},
		// GPU
		{`GR3D_FREQ 22%`, `{"gr3d":{"pct":22,"mhz":[]},"unknown":[]}`},
		{`GR3D 80%@153`, `{"gr3d":{"pct":80,"mhz":[153]},"unknown":[]}`},
		{`GR3D_FREQ @[314,314,314]`, `{"gr3d":{"pct":null,"mhz":[314,314,314]},"unknown":[]}`},
		{`GR3D_FREQ 5%@[300, off, 600]`, `{"gr3d":{"pct":5,"mhz":[300,null,600]},"unknown":[]}`},
		{`GR3D_FREQ 12 %@[621]`, `{"gr3d":{"pct":12,"mhz":[621]},"unknown":[]}`},
		{`GR3D_FREQ 0%@305 GR3D2_FREQ 1%@0`, `{"gr3d":{"pct":0,"mhz":[305,0],"pct2":1},"unknown":[]}`},
		{`GR3D_FREQ 0% GR3D2_FREQ 0%@0`, `{"gr3d":{"pct":0,"mhz":[null,0],"pct2":0},"unknown":[]}`},
		{`GR3D_PCI 9%@1328`, `{"dgpu":{"pct":9,"mhz":[1328]},"unknown":[]}`},
		{`GR3D_FREQ 101%`, `{"unknown":["GR3D_FREQ 101%"],"unknown_count":1}`},
		{`GR3D_FREQ 12%@`, `{"unknown":["GR3D_FREQ 12%@"],"unknown_count":1}`},
		// memory controller and engines
		{`EMC 30%@1600`, `{"emc":{"pct":30,"mhz":1600},"unknown":[]}`},
		{`EMC_FREQ @4266`, `{"emc":{"pct":null,"mhz":4266},"unknown":[]}`},
		{`AVP 0%@81 VDE 120 MSENC 716`, `{"engines":{"avp":{"pct":0,"mhz":81},"msenc":{"pct":null,"mhz":716},"vde":{"pct":null,"mhz":120}},"unknown":[]}`},
		{`VIC_LOAD 12% VIC_FREQ 729`, `{"engines":{"vic":{"pct":12,"mhz":729}},"unknown":[]}`},
		{`NVDLA0_FREQ @1600 NVDLA1 25%@614`, `{"engines":{"nvdla0":{"pct":null,"mhz":1600},"nvdla1":{"pct":25,"mhz":614}},"unknown":[]}`},
		{`PVA0_FREQ [10%,30%]@512`, `{"engines":{"pva0":{"pct":30,"mhz":512,"each_pct":[10,30]}},"unknown":[]}`},
		{`NVENC1 1075 SE 204 OFA off`, `{"engines":{"nvenc1":{"pct":null,"mhz":1075},"ofa":{"pct":null,"mhz":null,"off":true},"se":{"pct":null,"mhz":204}},"unknown":[]}`},
		// temperatures
		{`cpu@58.25C/61.75C`, `{"temps_c":{"cpu":58.25},"temps_peak_c":{"cpu":61.75},"unknown":[]}`},
		{`AO-therm@-4.5C thermal-fan-est@30C`, `{"temps_c":{"AO-therm":-4.5,"thermal-fan-est":30},"unknown":[]}`},
		{`gpu@54`, `{"unknown":["gpu@54"],"unknown_count":1}`},
		// rails
		{`VDD_IN 4824mW`, `{"power_mw":{"VDD_IN":{"now":4824,"avg":null}},"unknown":[]}`},
		{`VIN 87426mW/43713mW/87426mW`, `{"power_mw":{"VIN":{"now":87426,"avg":43713,"peak":87426}},"unknown":[]}`},
		{`VDD_IN 4824mW/48`, `{"unknown":["VDD_IN 4824mW/48"],"unknown_count":1}`},
		// memory
		{`IRAM 0/252kB(lfb 252kB)`, `{"iram_used_kb":0,"iram_total_kb":252,"iram_lfb_kb":252,"unknown":[]}`},
		{`RAM 5453/6834MB (lfb 54x128kB)`, `{"ram_used_mb":5453,"ram_total_mb":6834,"ram_lfb":{"blocks":54,"kb":128},"unknown":[]}`},
		{`RAM 10/20MB`, `{"ram_used_mb":10,"ram_total_mb":20,"unknown":[]}`},
		// the rest
		{`MTS fg 1% bg 8%`, `{"mts":{"fg_pct":1,"bg_pct":8},"unknown":[]}`},
		{`EDP limit 0`, `{"edp_limit":0,"unknown":[]}`},
		{`05-09-2026 18:42:05.123456 05-09-2026 18:42:06 EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`05-09-2026 18:42:6 EDP limit 0`, `{"edp_limit":0,"unknown":["05-09-2026 18:42:6"],"unknown_count":1}`},
		{`NVDLA0 OFF PVA1_FREQ [0%,0%]@1011`, `{"engines":{"nvdla0":{"pct":null,"mhz":null,"off":true},"pva1":{"pct":0,"mhz":1011,"each_pct":[0,0]}},"unknown":[]}`},
		// what loggers put before a line
		{`05-09-2026 18:42:06.123 EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`05-09-2026 18:42:06,123: EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`2026-05-09T18:42:06.123Z EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`2026-05-09T18:42:06+0200 EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`2026-05-09 18:42:06-07:00 EDP limit 0`, `{"time":"2026-05-09T18:42:06","edp_limit":0,"unknown":[]}`},
		{`[2018-08-23 16:30:36] : RAM 1/2MB`, `{"time":"2018-08-23T16:30:36","ram_used_mb":1,"ram_total_mb":2,"unknown":[]}`},
		{`Jun 26 03:50:01 nano tegrastats[1234]: 05-09-2026 18:42:06 RAM 1/2MB`, `{"time":"2026-05-09T18:42:06","ram_used_mb":1,"ram_total_mb":2,"unknown":[]}`},
		{`INFO:tegra:RAM 1/2MB`, `{"ram_used_mb":1,"ram_total_mb":2,"unknown":[]}`},
		{`E/TegraStats( 3627): RAM 1/2MB cpu [61%,45%]@835 avp 17%@100 emc 25%@333`, `{"ram_used_mb":1,"ram_total_mb":2,"cpu":[{"pct":61,"mhz":835},{"pct":45,"mhz":835}],"cpu_mhz":835,"emc":{"pct":25,"mhz":333},"engines":{"avp":{"pct":17,"mhz":100}},"unknown":[]}`},
		{`1687751401.123 RAM 1/2MB`, `{"ram_used_mb":1,"ram_total_mb":2,"unknown":[]}`},
		{`EMC_FREQ 1% x: RAM 1/2MB`, `{"ram_used_mb":1,"ram_total_mb":2,"emc":{"pct":1,"mhz":null},"unknown":["x:"],"unknown_count":1}`},
		{`FOO 12 RAM 1/2MB`, `{"ram_used_mb":1,"ram_total_mb":2,"unknown":["FOO 12"],"unknown_count":1}`},
		// engines in lower case, a clock that is none, a value without its unit
		{`nvenc0 @314 nvdec1 off vic 36%@115 gr3d_freq 1%@305 gr3d2_freq 2%@306`, `{"gr3d":{"pct":1,"mhz":[305,306],"pct2":2},"engines":{"nvdec1":{"pct":null,"mhz":null,"off":true},"nvenc0":{"pct":null,"mhz":314},"vic":{"pct":36,"mhz":115}},"unknown":[]}`},
		{`cpu [1%,off]@-1 GR3D 2%@76`, `{"cpu":[{"pct":1,"mhz":null},{"pct":null,"mhz":null,"off":true}],"gr3d":{"pct":2,"mhz":[76]},"unknown":["cpu @-1"],"unknown_count":1}`},
		{`VDD_CPU_GPU_CV 598mW/597 VDD_SOC 2W/1 EDP limit 0`, `{"edp_limit":0,"power_mw":{"VDD_CPU_GPU_CV":{"now":598,"avg":597},"VDD_SOC":{"now":2000,"avg":1000}},"unknown":[]}`},
		// unknown tokens keep their values and disturb nothing
		{`NEWTHING 12%@300 EMC_FREQ 1%`, `{"emc":{"pct":1,"mhz":null},"unknown":["NEWTHING 12%@300"],"unknown_count":1}`},
		{`FUTURE_TOKEN value GR3D_FREQ 3%`, `{"gr3d":{"pct":3,"mhz":[]},"unknown":["FUTURE_TOKEN","value"],"unknown_count":2}`},
		{`NVMAP 10/200MB (lfb 1x4MB) EDP limit 1`, `{"edp_limit":1,"unknown":["NVMAP 10/200MB (lfb 1x4MB)"],"unknown_count":1}`},
		{``, `{"unknown":[]}`},
	}
	for _, tt := range tests {
		s := Parse(tt.line)
		got, err := s.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.line, got, tt.want)
		}
	}
}

func TestReadings(t *testing.T) {
	at := time.Unix(1000, 0)
	got := map[string]float64{}
	for _, r := range Readings("RAM 534/3964MB (lfb 98x4MB) CPU [16%@204,off] EMC_FREQ 0% GR3D_FREQ 50%@76 APE 25 PLL@34C CPU@36.5C PMIC@100C GPU-therm@36C gpu@35C thermal@36.25C POM_5V_IN 1022/1022 POM_5V_GPU 0/0 POM_5V_CPU 204/204 WHAT 1%", at) {
		if !r.Time.Equal(at) {
			t.Errorf("%s at %v", r.Series, r.Time)
		}
		got[r.Series.String()] = r.Value
	}
	want := map[string]float64{
		"skein_device_memory_used_bytes": 534 << 20, "skein_device_memory_total_bytes": 3964 << 20,
		"skein_device_memory_largest_free_block_bytes":       98 * 4 << 20,
		`skein_device_cpu_utilization_ratio{core="0"}`:       0.16,
		`skein_device_cpu_frequency_hertz{core="0"}`:         204e6,
		"skein_device_cpu_cores_online":                      1,
		"skein_device_emc_utilization_ratio":                 0,
		"skein_device_gpu_utilization_ratio":                 0.5,
		`skein_device_gpu_frequency_hertz{gpc="0"}`:          76e6,
		`skein_device_engine_frequency_hertz{engine="ape"}`:  25e6,
		`skein_device_temperature_celsius{zone="pll"}`:       34,
		`skein_device_temperature_celsius{zone="cpu"}`:       36.5,
		`skein_device_temperature_celsius{zone="GPU-therm"}`: 36,
		`skein_device_temperature_celsius{zone="gpu"}`:       35,
		`skein_device_temperature_celsius{zone="thermal"}`:   36.25,
		`skein_device_power_watts{rail="POM_5V_IN"}`:         1.022,
		`skein_device_power_watts{rail="POM_5V_GPU"}`:        0,
		`skein_device_power_watts{rail="POM_5V_CPU"}`:        0.204,
		"skein_device_power_total_watts":                     1.022,
		"skein_device_tegrastats_unknown_tokens":             1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTotalOfModulesWithoutInputRail(t *testing.T) {
	s := Parse("VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 7mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW")
	if got := s.TotalMW(); got == nil || *got != 2340+390+4025 {
		t.Errorf("total %v", got)
	}
	if s = Parse("RAM 1/2MB"); s.TotalMW() != nil {
		t.Error("a line without rails has a total")
	}
}

func TestParseStream(t *testing.T) {
	in := "RAM 1/2MB\n\n \r\n" + strings.Repeat("x", 3*MaxLine) + "\nRAM 2/2MB\r\nRAM 3/2MB"
	var out strings.Builder
	if err := ParseStream(t.Context(), strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	var used []any
	sc := bufio.NewScanner(strings.NewReader(out.String()))
	for sc.Scan() {
		var m map[string]any
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", sc.Text(), err)
		}
		if m["error"] != nil {
			used = append(used, "too long")
			continue
		}
		used = append(used, m["ram_used_mb"])
	}
	if diff := cmp.Diff([]any{1.0, "too long", 2.0, 3.0}, used); diff != "" {
		t.Error(diff)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	cancel(stop)
	if err := ParseStream(ctx, strings.NewReader(in), &out); !errors.Is(err, stop) {
		t.Errorf("cancelled stream: %v", err)
	}
}

// TestHostileLinesAreBounded holds that lines of 1 MB made to be read twice
// neither grow the result beyond its bounds nor, by the test's own time limit,
// cost more than linear time: quadratic work would take hours.
func TestHostileLinesAreBounded(t *testing.T) {
	for _, unit := range []string{"CPU [", "(", "RAM 1/2MB (", "GR3D_FREQ @[1,", "NC 1/1 ", "z@1C ", "A 1 ", "CPU [1%] ", "PVA0 [1%,", "\x00", "1%@[", "cpu [,", "VIC 1% "} {
		s := Parse(strings.Repeat(unit, 1<<20/len(unit)))
		if len(s.Unknown) > maxUnknown || len(s.CPU) > maxCores || len(s.PowerMW) > maxNames || len(s.TempsC) > maxNames || len(s.Engines) > maxNames {
			t.Errorf("%q: bounds broken: %d unknown, %d cores", unit, len(s.Unknown), len(s.CPU))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range samples(f) {
		f.Add(line)
	}
	for _, s := range []string{"CPU [", "CPU [,]@1", "GR3D_FREQ @[,off,N/A]", "MTS fg 1% bg", "RAM 1/2MB (lfb", "a@-256C a@-256C/1C", "PVA0 [1%]@", "X 99999999999999999999/1", "VIC_LOAD 1% VIC off", "[2018-08-23 16:30:36] : RAM 1/2MB", "x[1]: 2026-05-09T18:42:06.1+02:00 RAM 1/2MB", "1687751401.1: RAM 1/2MB"} {
		f.Add(s)
	}
	all := Grammar{Timestamp: true, Milliwatts: true, Peaks: true, SplitGPC: true, ListGPC: true, ZonesGated: true, SharedClock: true}
	f.Fuzz(func(t *testing.T, line string) {
		s := Parse(line)
		if _, err := s.JSON(); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if s.UnknownCount < len(s.Unknown) {
			t.Fatalf("%q: %d unknown, counted %d", line, len(s.Unknown), s.UnknownCount)
		}
		for _, r := range s.Readings(time.Unix(0, 0)) {
			if err := r.Series.Validate(); err != nil && strings.ToValidUTF8(line, "") == line {
				t.Fatalf("%q: %v", line, err)
			}
		}
		// What was understood survives printing and parsing.
		known := s
		known.Unknown, known.UnknownCount = nil, 0
		again := Parse(Format(known, all))
		// Conversions from kB or W may need more digits than numbers have, and
		// names with # are ours.
		if again.UnknownCount > 0 && !strings.ContainsAny(line, "#kKGW") {
			t.Fatalf("%q printed as %q has unknown %v", line, Format(known, all), again.Unknown)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	line := "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112,8%@2035,14%@2201,46%@1267,47%@1267,2%@1267,10%@1267,4%@1036,5%@1036,6%@1036,10%@1036] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW"
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		Parse(line)
	}
}
