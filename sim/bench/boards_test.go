package bench

import (
	"strings"
	"testing"
)

func TestBoards(t *testing.T) {
	var out strings.Builder
	figures, err := Boards(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	if len(figures) != 2 || figures[1].Value > boardsGoal || figures[1].Value == 0 {
		t.Errorf("%+v", figures)
	}
	if n := strings.Count(out.String(), "\n"); n != int(figures[0].Value)+1 || !strings.Contains(out.String(), "42.26") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}
