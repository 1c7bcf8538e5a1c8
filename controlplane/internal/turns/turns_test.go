package turns

import "testing"

func TestEachKeyOnce(t *testing.T) {
	q := New[string](func(a, b int) int { return a | b })
	q.Add("a", 1)
	q.Add("b", 1)
	q.Add("a", 2)
	if n := q.Len(); n != 2 {
		t.Errorf("%d keys wait, want 2", n)
	}
	if k, v, ok := q.Take(); k != "a" || v != 3 || !ok {
		t.Fatalf("%s %b %v", k, v, ok)
	}
	q.Add("a", 1) // while it is worked on
	if k, _, _ := q.Take(); k != "b" {
		t.Fatalf("%s was handed out twice", k)
	}
	q.Done("a")
	if k, v, _ := q.Take(); k != "a" || v != 1 {
		t.Fatalf("%s %b", k, v)
	}
	q.Close()
	if _, _, ok := q.Take(); ok {
		t.Error("work after close")
	}
}
