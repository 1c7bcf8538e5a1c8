package engine

import (
	"os"
	"strings"
	"testing"
)

// TestExplainRealLines takes each line that was seen in the field by itself.
func TestExplainRealLines(t *testing.T) {
	raw, err := os.ReadFile("testdata/deserialize-errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		class   Class
		message string
	}{
		{OtherTensorRT, "the engine and this device have different versions of TensorRT (8.2.3 and 8.2.1)"},
		{DamagedPlan, "TensorRT does not take the engine and does not say why"},
		{OtherDevice, "the engine was built on a GPU of another compute capability (6.1 and 7.5)"},
		{DamagedPlan, "TensorRT does not take the engine and does not say why"},
		{OtherTensorRT, "the engine was built by another version of TensorRT (its format is 232, this one reads 213)"},
		{OtherTensorRT, "the engine was built by another build of TensorRT than the one that serves (formats 43 and 0)"},
		{OtherTensorRT, "the engine was built by another version of TensorRT (its format is 239, this one reads 228)"},
		{OtherTensorRT, "the engine was built by another version of TensorRT"},
		{OtherModule, "TensorRT says that the engine was built on another model of device"},
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, %d answers", len(lines), len(want))
	}
	for i, l := range lines {
		got, err := Explain(strings.NewReader(l))
		if err != nil || len(got) != 1 || got[0].Class != want[i].class || got[0].Message != want[i].message || got[0].Advice == "" {
			t.Errorf("%s\n%+v %v\nwant %+v", l, got, err, want[i])
		}
	}
	// All of them together: the one that says most comes first, the warning last.
	all, err := Explain(strings.NewReader(string(raw)))
	if err != nil || len(all) != 4 || all[0].Class != OtherTensorRT || !all[len(all)-1].Warning {
		t.Errorf("%+v %v", all, err)
	}
}

func TestExplainLines(t *testing.T) {
	for line, want := range map[string]Class{
		"[TRT] [E] 6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.2.3 got 0.0.0, please rebuild.":                            OtherTensorRT,
		"[E] [TRT] 1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: Serialization (Serialization assertion magicTagRead == magicTag failed.Magic tag does not match)": DamagedPlan,
		"MagicTag assertion Failed": DamagedPlan,
		"[TRT] [E] 3: getPluginCreator could not find plugin: EfficientNMS_TRT version: 1":                                MissingPlugin,
		"NvMapMemAllocInternalTagged: 1075072515 error 12":                                                                NoMemory,
		"[E] Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further information)": NoMemory,
		"[E] Unknown option: --buildOnly":                                                                                 BadOption,
		"Segmentation fault (core dumped)":                                                                                Crashed,
		"[E] [TRT] ModelImporter.cpp:776: --- Begin node ---":                                                             "",
		"[E] Failed to parse onnx file":                                                                                   BadModel,
		"[E] Cannot create DLA engine, 0 not available":                                                                   NoDLA,
		"trtexec: error while loading shared libraries: libnvinfer.so.8: cannot open shared object file: No such file":    NoGPU,
		"[I] Throughput: 18.9 qps":                                                                                        "",
	} {
		got, err := Explain(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Class != want {
			t.Errorf("%s: %+v, want %s", line, got, want)
		}
	}
	if f := ExplainText([]string{"starting", "Using an engine plan file across different models of devices is not recommended and is likely to affect performance or even cause errors."}); f != nil {
		t.Errorf("a warning is a reason: %+v", f)
	}
	if f := ExplainText([]string{"Segmentation fault"}); f == nil || f.Class != Crashed {
		t.Errorf("%+v", f)
	}
}

func FuzzExplain(f *testing.F) {
	raw, err := os.ReadFile("testdata/deserialize-errors.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(raw))
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Explain(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range all {
			if x.Class == "" || x.Message == "" || x.Advice == "" || len(x.Line) > 2*maxShown {
				t.Errorf("%+v", x)
			}
		}
	})
}
