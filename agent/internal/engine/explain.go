package engine

import (
	"io"
	"regexp"
	"strings"
)

// Class groups what goes wrong with engines.
type Class string

// The classes.
const (
	OtherTensorRT Class = "other-tensorrt" // built by another version than the one that loads
	OtherDevice   Class = "other-device"   // built for another compute capability
	OtherModule   Class = "other-module"   // a warning: it loads, and was tuned elsewhere
	DamagedPlan   Class = "damaged-plan"   // not a plan, cut off, or with something before it
	MissingPlugin Class = "missing-plugin"
	BadModel      Class = "bad-model" // the ONNX file cannot be built by this TensorRT
	NoMemory      Class = "no-memory"
	NoGPU         Class = "no-gpu" // driver or libraries are not there
	NoDLA         Class = "no-dla"
	BadOption     Class = "bad-option" // trtexec does not know an option
	Crashed       Class = "crashed"
	TimedOut      Class = "timed-out"
	Unknown       Class = "unknown"
)

// Finding is one reason in plain words.
type Finding struct {
	Class   Class  `json:"class"`
	Message string `json:"message"`
	Advice  string `json:"advice"`
	Line    string `json:"line,omitempty"` // what TensorRT said
	Warning bool   `json:"warning,omitempty"`
}

// String is the reason and what to do, for people.
func (f Finding) String() string {
	if f.Advice == "" {
		return f.Message
	}
	return f.Message + ": " + f.Advice
}

// rule maps a text of TensorRT to a finding; $1, $2 are its groups.
type rule struct {
	class   Class
	re      *regexp.Regexp
	message string
	advice  string
	warning bool
}

const rebuild = "have an engine built for this target (skein engine build), the same file never loads here"

// rules in order of how much they say.
var rules = []rule{
	{class: OtherTensorRT, re: regexp.MustCompile(`not compatible with this version of TensorRT, expecting library version (?:0\.0\.0 got \S+|\S+ got 0\.0\.0)`),
		message: "the file is no engine, or was damaged on its way", advice: "compare its sha256 with the record and fetch it again"},
	{class: OtherTensorRT, re: regexp.MustCompile(`not compatible with this version of TensorRT, expecting library version ([\d.]+) got ([\d.]+\d)`),
		message: "the engine and this device have different versions of TensorRT ($1 and $2)", advice: rebuild},
	{class: OtherDevice, re: regexp.MustCompile(`generated on an incompatible device, expecting compute ([\d.]+) got compute ([\d.]+\d)`),
		message: "the engine was built on a GPU of another compute capability ($1 and $2)", advice: rebuild},
	{class: OtherTensorRT, re: regexp.MustCompile(`safeVersionRead == \w+ failed\.?\s*Version tag does not match\. Note: Current Version: (\d+), Serialized Engine Version: (\d+)`),
		message: "the engine was built by another build of TensorRT than the one that serves (formats $2 and $1)", advice: "build it inside of the image that serves it"},
	{class: OtherTensorRT, re: regexp.MustCompile(`Version tag does not match\. Note: Current Version: (\d+), Serialized Engine Version: (\d+)`),
		message: "the engine was built by another version of TensorRT (its format is $2, this one reads $1)", advice: rebuild},
	{class: OtherTensorRT, re: regexp.MustCompile(`verifyHeader: \d+ \(Version tag does not match\)|Version tag does not match`),
		message: "the engine was built by another version of TensorRT", advice: rebuild},
	{class: DamagedPlan, re: regexp.MustCompile(`(?i)magic ?tag assertion failed|magicTagRead == \w+`),
		message: "the file is no TensorRT plan: it is cut off, or something stands before it (Ultralytics puts a header there)", advice: "fetch it again, and strip such a header before the plan is pushed"},
	{class: DamagedPlan, re: regexp.MustCompile(`Mismatch between allocated memory size and expected size of serialized engine|size_t\)?\s*remaining|Serialized engine.*truncated`),
		message: "the plan is cut off", advice: "fetch it again; if it is whole by its sha256, build it again"},
	{class: MissingPlugin, re: regexp.MustCompile(`(?:getPluginCreator could not find [Pp]lugin:?|Cannot find plugin:?|Plugin not found|Unable to find plugin:?|no creator .* for plugin:?|could not find plugin:?)\s*([\w:+-]*)`),
		message: "a plugin of the model is not in the image ($1)", advice: "serve it with an image that has the plugin; plugins are code and need a person's signature"},
	{class: NoDLA, re: regexp.MustCompile(`(?i)DLA core.*(?:not supported|invalid|exceed)|Cannot create DLA engine|no DLA|DLA is not supported`),
		message: "the engine wants a DLA that this module does not have", advice: "use a recipe without DLA for this module"},
	{class: NoMemory, re: regexp.MustCompile(`(?i)NvMapMemAllocInternalTagged.*error|NvMapMem\w+.* error 12|ENOMEM|out of memory|OutOfMemory|insufficient memory|cudaErrorMemoryAllocation|Requested amount of GPU memory|std::bad_alloc|Cannot allocate memory`),
		message: "memory did not suffice", advice: "unload something else, add swap, or lower workspaceMiB in the recipe"},
	{class: NoGPU, re: regexp.MustCompile(`(?i)CUDA (?:initialization|driver version is insufficient|failure|lib not found)|no CUDA-capable device|cudaErrorNoDevice|cudaErrorInsufficientDriver|libnvinfer\S* ?: cannot open shared object|libcuda\S* ?: cannot open shared object|libnvdla\S* ?: cannot open shared object`),
		message: "TensorRT does not reach the GPU", advice: "check that the container gets the GPU (CDI, or the NVIDIA runtime) and its libraries: skein-agent doctor"},
	{class: BadModel, re: regexp.MustCompile(`(?i)failed to parse onnx|unsupported (?:onnx )?(?:operator|op)\b|No importer registered for op: ?(\w*)|parsing (?:node|model) .*failed|ModelImporter.*ERROR|Network must have at least one output|could not open file .*onnx|Could not find any implementation for node`),
		message: "this TensorRT cannot build the model $1", advice: "export it with another opset, or use a precision and operators that it has"},
	{class: BadOption, re: regexp.MustCompile(`(?i)unknown option:? ?(\S*)`),
		message: "this trtexec does not know the option $1", advice: "its TensorRT is older or newer than the recipe takes it for: probe it again"},
	{class: Crashed, re: regexp.MustCompile(`(?i)segmentation fault|core dumped|SIGSEGV|signal 11|SIGABRT|terminate called after`),
		message: "TensorRT crashed while it loaded the engine", advice: "an engine of another version or device often does that: " + rebuild},
	{class: DamagedPlan, re: regexp.MustCompile(`(?i)Engine deserialization failed|Core engine deserialization failure|deserializeCudaEngine.*(?:fail|error)|failed to (?:create|deserialize) engine`),
		message: "TensorRT does not take the engine and does not say why", advice: "try it with trtexec --loadEngine in the very image that serves it"},
	{class: OtherModule, warning: true, re: regexp.MustCompile(`Using an engine plan file across different models of devices is not (?:recommended|supported)`),
		message: "TensorRT says that the engine was built on another model of device", advice: "it may be slower; TensorRT also says this on the building device in another power mode, so this alone is no reason to refuse it"},
}

// Explain reads a log and says why an engine did not load or build, what says
// most first, each class once. It is empty when the log has no known error.
func Explain(r io.Reader) ([]Finding, error) {
	found := make([]*Finding, len(rules))
	err := eachLine(r, func(line string) {
		for i, rl := range rules {
			if found[i] != nil {
				continue
			}
			g := rl.re.FindStringSubmatchIndex(line)
			if g == nil {
				continue
			}
			found[i] = &Finding{Class: rl.class, Advice: rl.advice, Line: clip(strings.TrimSpace(line)), Warning: rl.warning,
				Message: strings.TrimSpace(strings.ReplaceAll(clip(string(rl.re.ExpandString(nil, rl.message, line, g))), " ()", ""))}
			return // the rules behind it say less about this line
		}
	})
	var out []Finding
	seen := map[Class]bool{}
	for _, f := range found {
		if f != nil && !seen[f.Class] {
			seen[f.Class] = true
			out = append(out, *f)
		}
	}
	return out, err
}

// ExplainText is Explain of the last lines of a server; the worst finding that
// is no warning, nil when there is none.
func ExplainText(lines []string) *Finding {
	all, err := Explain(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		return nil
	}
	for _, f := range all {
		if !f.Warning {
			return &f
		}
	}
	return nil
}
