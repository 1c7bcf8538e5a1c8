package conductor

import (
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota/rollout"
)

// One whole rollout over 2,000 devices, from start to success: what the
// conductor and the store cost, with devices that answer at once.
func BenchmarkRollout2000(b *testing.B) {
	for b.Loop() {
		w := newWorld(b, 2000)
		w.start(`{"release":"m@2","waves":[{"name":"canary","perTarget":2,"soak":{"min":"1m"}},{"name":"rest","ramp":{"kind":"exponential","initial":50,"factor":2}}]}`, "big")
		steps := 0
		for ; steps < 300; steps++ {
			w.step()
			w.now = w.now.Add(10 * time.Second)
			if len(w.c.runs) == 0 {
				break
			}
		}
		s, _ := w.get("big")
		if s.Phase != string(rollout.Succeeded) {
			b.Fatalf("%+v", s)
		}
		b.ReportMetric(float64(steps), "steps")
	}
}
