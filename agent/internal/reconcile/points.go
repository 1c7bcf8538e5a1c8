package reconcile

import "github.com/skein-fleet/skein/ota"

// Points names the moments before a durable write of an update, for tests that
// end the process there. Those of a container image, of the agent's binary, of
// an operating system and of an undo are passed only by updates that have one.
func Points() []string {
	out := []string{"begin:before-state"}
	for _, s := range ota.Steps {
		out = append(out, string(s)+":before-started", string(s)+":started")
		switch s {
		case ota.StepFetch:
			out = append(out, "fetch:before-blob")
		case ota.StepStage:
			out = append(out, "stage:before-files", "stage:before-complete", "image:before-import", "image:before-whole",
				"os:before-write", "os:before-written", "os:before-active", "os:before-switched", "os:before-reboot",
				"agent:before-put", "agent:before-try", "agent:before-handover")
		case ota.StepCommit:
			out = append(out, "os:before-good", "commit:before-state", "agent:before-keep", "commit:before-collect")
		}
		out = append(out, string(s)+":before-done")
	}
	out = append(out, "undo:before-cause")
	for i := len(ota.Steps) - 1; i >= 0; i-- {
		if ota.Steps[i] == ota.StepStage {
			out = append(out, "agent:before-back", "os:before-back", "os:before-reboot-back")
		}
		out = append(out, string(ota.Steps[i])+":before-undone")
	}
	return append(out, "undo:before-state")
}
