package trust

import "testing"

// TestOnce: what a reader may understand in two ways is refused.
func TestOnce(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"signed":{"version":1},"signatures":[]}`:                 true,
		`{"signed":{"version":1,"version":2}}`:                     false,
		`{"signed":{"version":1,"Version":2}}`:                     false,
		`{"signed":{"ver\u0073ion":1,"version":2}}`:                false,
		`{"signed":{"verſion":1,"version":2}}`:                     false, // encoding/json takes a long s for an s
		`{"signed":{"targets":{"a":{},"A":{}}}}`:                   true,
		`{"signed":{"targets":{"a":{},"a":{}}}}`:                   false,
		`{"signed":{"targets":{"a":{"length":1,"LENGTH":2}}}}`:     false,
		`{"signed":{"roles":{"root":{"keyids":[{"a":1,"a":2}]}}}}`: false,
		`{"signed":{}} {}`:                                         false,
	} {
		if err := once([]byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	deep := make([]byte, 10_000)
	for i := range deep {
		deep[i] = '['
	}
	if once(deep) == nil {
		t.Error("10,000 levels are taken")
	}
}
