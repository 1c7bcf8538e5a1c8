package jetson

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func started(t *testing.T, c *BootChain) string {
	t.Helper()
	i, err := c.Start()
	if err != nil {
		t.Fatal(err)
	}
	return i.L4T
}

func TestBootChainUpdate(t *testing.T) {
	c := NewBootChain("36.4.4")
	if got := started(t, c); got != "36.4.4" {
		t.Fatal(got)
	}
	c.Verify()
	if err := c.Write(1, ParseOSImage("l4t=39.2.0")); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(0, OSImage{}); err == nil {
		t.Error("the running slot was written")
	}
	c.SetActive(1)
	for n := range Retries { // nobody confirms it
		if got := started(t, c); got != "39.2.0" {
			t.Fatalf("start %d: %s", n, got)
		}
	}
	if got := started(t, c); got != "36.4.4" || !c.Slots[1].Unbootable {
		t.Errorf("after %d starts without a confirmation: %s, %+v", Retries, got, c)
	}
	// 0xFF stays whatever is written and asked for.
	c.Verify()
	if err := c.Write(1, OSImage{L4T: "39.2.0"}); err != nil {
		t.Fatal(err)
	}
	c.SetActive(1)
	if got := started(t, c); got != "36.4.4" {
		t.Errorf("a slot marked 0xFF started: %s", got)
	}
}

func TestBootChainTraps(t *testing.T) {
	for _, trap := range BootTraps {
		c := NewBootChain("36.4.4")
		started(t, c)
		c.Verify()
		c.Trap(trap)
		if err := c.Write(1, OSImage{L4T: "39.2.0"}); err != nil {
			t.Fatal(err)
		}
		c.SetActive(1)
		if got := started(t, c); (got == "36.4.4") != (trap != TrapCapsule) {
			t.Errorf("%s: %s starts", trap, got)
		}
	}
	c := NewBootChain("36.4.4")
	started(t, c)
	c.Verify()
	if err := c.Write(1, ParseOSImage("l4t=39.2.0 dead")); err != nil {
		t.Fatal(err)
	}
	c.SetActive(1)
	if got := started(t, c); got != "36.4.4" || !c.Slots[1].Unbootable {
		t.Errorf("a dead image: %s, %+v", got, c)
	}
}

// TestBootChainStarts: whatever is done, a board whose running system was
// confirmed starts again.
func TestBootChainStarts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewBootChain("36.4.4")
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if _, err := c.Start(); err != nil {
				t.Fatalf("%v: %+v", err, c)
			}
			c.Verify()
			if rapid.Bool().Draw(t, "write") {
				if err := c.Write(1-c.Current, OSImage{L4T: "39.2.0", Dead: rapid.Bool().Draw(t, "dead")}); err != nil {
					t.Fatal(err)
				}
				c.SetActive(1 - c.Current)
			}
		}
	})
	c := NewBootChain("1")
	c.Slots[0].Image.Dead, c.Slots[1].Image.Dead = true, true
	if _, err := c.Start(); !errors.Is(err, ErrNoBoot) {
		t.Errorf("two dead images: %v", err)
	}
}
