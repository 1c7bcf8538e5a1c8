package bench

import "testing"

func TestPower(t *testing.T) {
	cuts := 24
	if testing.Short() {
		cuts = 6
	}
	figures, err := Power(t.Context(), PowerOptions{Cuts: cuts, Seed: 7, Parallel: 12, Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	if len(figures) != 5 {
		t.Errorf("%d figures", len(figures))
	}
	for _, f := range figures {
		if !f.OK {
			t.Error(f)
		}
	}
}
