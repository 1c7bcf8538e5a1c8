package jetson

import "github.com/skein-fleet/skein/telemetry/probe/tegra"

// Orders in which the releases print, taken from real lines.
var (
	orinZones  = []string{"cpu", "soc2", "soc0", "gpu", "tj", "soc1"}
	smallRails = []string{"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
	orinOPP    = []float64{114, 204, 306, 408, 510, 612, 714, 816, 918, 1020, 1122, 1224, 1300}
)

// orinThermal has the trips of the t234 device tree.
func orinThermal(dieToSink, sinkToAir float64) Thermal {
	return Thermal{dieToSink, sinkToAir, 6, 180, 95, 2, 99, 104.5, 1.0 / 32}
}

func orinZoneModel(gpu, cpu float64) []Zone {
	return []Zone{
		{Name: "cpu", Offset: 1, CPU: cpu}, {Name: "gpu", Offset: -0.5, GPU: gpu}, {Name: "soc0", Offset: -0.7},
		{Name: "soc1", Offset: 0.2}, {Name: "soc2", Offset: -1.2}, {Name: "tj", Max: true},
	}
}

// Models is every kind of board that can be simulated; README.md gives the
// source of each figure and marks assumptions.
var Models = []Model{
	{
		Key: "nano", Product: "NVIDIA Jetson Nano Developer Kit", Module: "p3448-0000",
		L4T: "32.7.1", SM: "5.3", TensorRT: "8.2.1", CUDA: "10.2", MemGB: 4,
		RAMMB: 3964, SwapMB: 1982, Cores: 4, GPCs: 1,
		CPUOPP: []float64{102, 204, 307, 403, 518, 614, 710, 825, 921, 1036, 1132, 1224, 1326, 1428, 1479},
		GPUOPP: []float64{76, 153, 230, 307, 384, 460, 537, 614, 691, 768, 844, 921},
		EMCOPP: []float64{204, 408, 665, 800, 1065, 1331, 1600},
		Modes: []Mode{
			{"MAXN", 0, 4, 1479, 921, 1600},
			{"5W", 1, 2, 921, 614, 1600},
		},
		DefaultMode: "MAXN",
		Thermal:     Thermal{1.75, 1.6, 6, 200, 97, 2, 100, 102.5, 0.5},
		Rails: []Rail{
			{Name: "POM_5V_IN", Idle: 1100, EMC: 1200, Input: true},
			{Name: "POM_5V_GPU", Idle: 40, GPU: 3900},
			{Name: "POM_5V_CPU", Idle: 200, CPU: 3000},
		},
		Zones: []Zone{
			{Name: "PLL", Offset: -1}, {Name: "CPU", CPU: 1.5}, {Name: "GPU", Offset: -1, GPU: 1.5},
			{Name: "AO", Offset: 3}, {Name: "thermal", Offset: -0.5}, {Name: "PMIC", Fixed: 50},
		},
		Engines: []Engine{{Name: "APE", MHz: 25, Always: true}},
		Grammar: tegra.Grammar{
			ZonesGated: true, Engines: []string{"NVENC", "NVDEC", "APE"},
			Zones: []string{"PLL", "CPU", "iwlwifi", "PMIC", "GPU", "AO", "thermal"},
			Rails: []string{"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"},
		},
		Latency: 7.1, MemoryBound: 0.3,
	},
	{
		Key: "xavier-nx", Product: "NVIDIA Jetson Xavier NX Developer Kit", Module: "p3668-0000",
		L4T: "35.3.1", SM: "7.2", TensorRT: "8.5.2", CUDA: "11.4", MemGB: 8, DLA: 2,
		RAMMB: 6834, SwapMB: 3417, Cores: 6, GPCs: 1,
		CPUOPP: []float64{115, 192, 268, 345, 422, 499, 576, 652, 729, 806, 883, 960, 1036, 1113, 1190, 1267, 1344, 1420, 1497, 1574, 1651, 1728, 1805, 1881, 1907},
		GPUOPP: []float64{114, 204, 306, 408, 510, 599, 701, 803, 854, 905, 956, 1007, 1058, 1109},
		EMCOPP: []float64{204, 408, 665, 800, 1065, 1331, 1600, 1866},
		Modes: []Mode{
			{"MODE_15W_2CORE", 0, 2, 1907, 1109, 1600}, {"MODE_15W_4CORE", 1, 4, 1420, 1109, 1600},
			{"MODE_15W_6CORE", 2, 6, 1420, 1109, 1600}, {"MODE_10W_2CORE", 3, 2, 1497, 803, 1600},
			{"MODE_10W_4CORE", 4, 4, 1190, 803, 1600}, {"MODE_20W_6CORE", 8, 6, 1420, 1109, 1866},
		},
		DefaultMode: "MODE_15W_6CORE",
		Thermal:     Thermal{0.8, 1.3, 6, 180, 90.5, 2, 96, 101, 0.5},
		Rails: []Rail{
			{Name: "VDD_IN", Idle: 2400, GPU: 400, CPU: 300, EMC: 700, Input: true},
			{Name: "VDD_CPU_GPU_CV", Idle: 600, GPU: 7000, CPU: 3300},
			{Name: "VDD_SOC", Idle: 1200, GPU: 300, EMC: 500},
		},
		Zones: []Zone{
			{Name: "AUX", Offset: -1.5}, {Name: "CPU", CPU: 1.5}, {Name: "thermal", Offset: -0.5},
			{Name: "AO", Offset: -1}, {Name: "GPU", Offset: -1, GPU: 4}, {Name: "PMIC", Fixed: 50},
		},
		Engines: []Engine{{Name: "VIC_FREQ", MHz: 601}, {Name: "NVDLA0_FREQ", MHz: 1100}, {Name: "APE", MHz: 150, Always: true}},
		Grammar: tegra.Grammar{
			Timestamp: true, Milliwatts: true, ZonesGated: true, Engines: []string{"VIC_FREQ", "NVDLA0_FREQ", "NVDLA1_FREQ", "APE"},
			Zones: []string{"AUX", "CPU", "thermal", "AO", "GPU", "PMIC"}, Rails: smallRails,
		},
		Latency: 1.6, MemoryBound: 0.3,
	},
	{
		Key: "orin-nano", Product: "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", Module: "p3767-0005",
		L4T: "36.4.4", SM: "8.7", TensorRT: "10.3.0", CUDA: "12.6", MemGB: 8,
		RAMMB: 7620, SwapMB: 3810, Cores: 6, GPCs: 1,
		CPUOPP: []float64{729, 883, 960, 1036, 1113, 1190, 1267, 1344, 1420, 1497, 1574, 1651, 1728},
		GPUOPP: []float64{306, 408, 510, 612, 713, 816, 918, 1020},
		EMCOPP: []float64{204, 665, 2133, 3199},
		Modes: []Mode{
			{"15W", 0, 6, 1497, 612, 2133}, {"25W", 1, 6, 1344, 918, 3199},
			{"MAXN_SUPER", 2, 6, 1728, 1020, 3199}, {"7W", 3, 4, 960, 408, 2133},
		},
		DefaultMode: "25W",
		Thermal:     orinThermal(0.9, 1.3),
		Rails: []Rail{
			{Name: "VDD_IN", Idle: 2800, GPU: 900, CPU: 500, EMC: 1600, Input: true},
			{Name: "VDD_CPU_GPU_CV", Idle: 500, GPU: 7800, CPU: 3300},
			{Name: "VDD_SOC", Idle: 1450, GPU: 900, EMC: 1300},
		},
		Zones: orinZoneModel(2.5, 1),
		Engines: []Engine{
			{Name: "NVDEC"}, {Name: "NVJPG"}, {Name: "NVJPG1"}, {Name: "VIC", MHz: 435}, {Name: "OFA"}, {Name: "APE", MHz: 200, Always: true},
		},
		Grammar: tegra.Grammar{
			Timestamp: true, Milliwatts: true, ListGPC: true, Zones: orinZones, Rails: smallRails,
			Engines: []string{"NVDEC", "NVJPG", "NVJPG1", "VIC", "OFA", "APE"},
		},
		Latency: 0.67, MemoryBound: 0.3,
	},
	{
		Key: "orin-nx", Product: "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", Module: "p3767-0000",
		L4T: "36.4.3", SM: "8.7", TensorRT: "10.3.0", CUDA: "12.6", MemGB: 16, DLA: 2,
		RAMMB: 15389, SwapMB: 7694, Cores: 8, GPCs: 1,
		CPUOPP: []float64{729, 883, 1036, 1190, 1344, 1497, 1651, 1805, 1984},
		GPUOPP: []float64{306, 408, 510, 612, 714, 816, 918},
		EMCOPP: []float64{204, 665, 2133, 3199},
		Modes: []Mode{
			{"MAXN", 0, 8, 1984, 918, 3199}, {"10W", 1, 4, 1190, 612, 2133},
			{"15W", 2, 4, 1420, 612, 2133}, {"25W", 3, 8, 1497, 714, 3199},
		},
		DefaultMode: "MAXN",
		Thermal:     orinThermal(0.7, 1.1),
		Rails: []Rail{
			{Name: "VDD_IN", Idle: 2900, GPU: 1200, CPU: 700, EMC: 1900, Input: true},
			{Name: "VDD_CPU_GPU_CV", Idle: 700, GPU: 9500, CPU: 5200},
			{Name: "VDD_SOC", Idle: 1400, GPU: 1000, EMC: 1700},
		},
		Zones: orinZoneModel(3, 1.2),
		Engines: []Engine{
			{Name: "NVENC"}, {Name: "NVDEC"}, {Name: "NVJPG"}, {Name: "NVJPG1"}, {Name: "VIC", MHz: 435}, {Name: "OFA"},
			{Name: "NVDLA0", MHz: 614}, {Name: "NVDLA1", MHz: 614}, {Name: "PVA0_FREQ"}, {Name: "APE", MHz: 200, Always: true},
		},
		Grammar: tegra.Grammar{
			Timestamp: true, Milliwatts: true, ListGPC: true, Zones: orinZones, Rails: smallRails,
			Engines: []string{"NVENC", "NVDEC", "NVJPG", "NVJPG1", "VIC", "OFA", "NVDLA0", "NVDLA1", "PVA0_FREQ", "APE"},
		},
		Latency: 0.66, MemoryBound: 0.3,
	},
	{
		Key: "agx-orin", Product: "NVIDIA Jetson AGX Orin Developer Kit", Module: "p3701-0005",
		L4T: "36.4.4", SM: "8.7", TensorRT: "10.3.0", CUDA: "12.6", MemGB: 64, DLA: 2,
		RAMMB: 62841, SwapMB: 31420, Cores: 12, GPCs: 2,
		CPUOPP: []float64{729, 883, 1036, 1190, 1344, 1497, 1651, 1728, 1881, 2035, 2112, 2201},
		GPUOPP: orinOPP,
		EMCOPP: []float64{204, 665, 2133, 3199},
		Modes: []Mode{
			{"MAXN", 0, 12, 2201, 1300, 3199}, {"MODE_15W", 1, 4, 1190, 408, 2133},
			{"MODE_30W", 2, 8, 1728, 612, 3199}, {"MODE_50W", 3, 12, 1497, 816, 3199},
		},
		DefaultMode: "MAXN",
		Thermal:     orinThermal(0.3, 0.5),
		Rails: []Rail{
			{Name: "VDD_GPU_SOC", Idle: 2400, GPU: 23000, EMC: 2500},
			{Name: "VDD_CPU_CV", Idle: 500, CPU: 13000},
			{Name: "VIN_SYS_5V0", Idle: 4000, GPU: 1500, CPU: 500, EMC: 2500},
		},
		Zones: []Zone{
			{Name: "cpu", Offset: 1, CPU: 2}, {Name: "gpu", GPU: 5, Gated: true}, {Name: "soc0", Offset: -0.7},
			{Name: "soc1", Offset: 0.2}, {Name: "soc2", Offset: -1.2}, {Name: "tj", Max: true},
		},
		Engines: []Engine{
			{Name: "NVENC"}, {Name: "NVDEC"}, {Name: "NVJPG"}, {Name: "NVJPG1"}, {Name: "VIC", MHz: 115}, {Name: "OFA"},
			{Name: "NVDLA0", MHz: 1600}, {Name: "NVDLA1", MHz: 1600}, {Name: "PVA0_FREQ"}, {Name: "APE", MHz: 174, Always: true},
		},
		Grammar: tegra.Grammar{
			Timestamp: true, Milliwatts: true, ListGPC: true, Zones: orinZones,
			Engines: []string{"NVENC", "NVDEC", "NVJPG", "NVJPG1", "VIC", "OFA", "NVDLA0", "NVDLA1", "PVA0_FREQ", "APE"},
			Rails:   []string{"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"},
		},
		Latency: 0.35, MemoryBound: 0.35,
	},
	{
		Key: "thor", Product: "NVIDIA Jetson AGX Thor Developer Kit", Module: "p3834-0008",
		L4T: "38.4.0", SM: "11.0", TensorRT: "10.13.3", CUDA: "13.0", MemGB: 128,
		RAMMB: 125773, SwapMB: 2048, Cores: 14, GPCs: 3,
		CPUOPP: []float64{972, 1188, 1404, 1620, 1836, 2052, 2268, 2484, 2601},
		GPUOPP: []float64{314, 512, 701, 899, 1098, 1296, 1386, 1485, 1574},
		EMCOPP: []float64{665, 2133, 3199, 4266},
		Modes: []Mode{
			{"MAXN", 0, 14, 2601, 1574, 4266}, {"120W", 1, 14, 2601, 1386, 4266},
			{"90W", 2, 14, 2052, 1098, 4266}, {"70W", 3, 12, 1620, 899, 4266},
		},
		DefaultMode: "120W",
		Thermal:     orinThermal(0.15, 0.3),
		Rails: []Rail{
			{Name: "VDD_GPU", GPU: 55000},
			{Name: "VDD_CPU_SOC_MSS", Idle: 4100, GPU: 4000, CPU: 20000, EMC: 9000},
			{Name: "VIN_SYS_5V0", Idle: 4100, GPU: 6000, CPU: 2000, EMC: 6000},
		},
		Zones: []Zone{
			{Name: "cpu", CPU: 2}, {Name: "gpu", GPU: 4, Gated: true}, {Name: "soc012", Offset: -0.7},
			{Name: "soc345", Offset: 0.2}, {Name: "tj", Max: true},
		},
		Engines: []Engine{
			{Name: "NVENC0_FREQ", Zero: true}, {Name: "NVENC1_FREQ", Zero: true}, {Name: "NVDEC0_FREQ", Zero: true},
			{Name: "NVDEC1_FREQ", Zero: true}, {Name: "NVJPG0_FREQ", Zero: true}, {Name: "VIC", MHz: 115},
			{Name: "OFA_FREQ", Zero: true}, {Name: "PVA0_FREQ"}, {Name: "APE", MHz: 300, Always: true},
		},
		Grammar: tegra.Grammar{
			Timestamp: true, Milliwatts: true, ListGPC: true,
			Zones: []string{"cpu", "tj", "soc012", "gpu", "soc345"},
			Engines: []string{
				"NVENC0_FREQ", "NVENC1_FREQ", "NVDEC0_FREQ", "NVDEC1_FREQ", "NVJPG0_FREQ", "VIC", "OFA_FREQ", "PVA0_FREQ", "APE",
			},
			Rails: []string{"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"},
		},
		Latency: 0.2, MemoryBound: 0.35,
	},
	{
		Key: "x86", Product: "x86_64 server", Module: "x86",
		MemGB: 32, RAMMB: 32000, SwapMB: 8192, Cores: 8, GPCs: 1,
		CPUOPP:      []float64{800, 1600, 2400, 3200, 4000},
		GPUOPP:      []float64{300, 600, 900, 1200, 1500, 1800},
		EMCOPP:      []float64{3200},
		Modes:       []Mode{{"performance", 0, 8, 4000, 1800, 3200}, {"powersave", 1, 8, 2400, 1200, 3200}},
		DefaultMode: "performance",
		Thermal:     Thermal{0.12, 0.18, 5, 120, 90, 3, 97, 105, 1},
		Rails:       []Rail{{Name: "package", Idle: 12000, CPU: 60000}, {Name: "gpu", Idle: 15000, GPU: 90000}},
		Zones:       []Zone{{Name: "cpu", CPU: 4}, {Name: "gpu", GPU: 6}},
		Latency:     0.3, MemoryBound: 0.2,
	},
}
