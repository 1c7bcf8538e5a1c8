package bench

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/skein-fleet/skein/sim/trtexec"
)

// boardsGoal is how far, in percent, modelled boards may be from what was
// published of real ones.
const boardsGoal = 10

// Boards compares latency and power of the modelled boards with every published
// figure, by module and power mode, and prints the table.
func Boards(ctx context.Context, out io.Writer) ([]Figure, error) {
	rows, err := trtexec.Published(trtexec.Measure(ctx))
	if err != nil {
		return nil, fmt.Errorf("measure modelled boards: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "board\tmode\tnetwork\tprecision\ton\tms\tpublished\tW\tpublished\toff\tsource")
	value := func(v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f", v)
	}
	worst := 0.0
	for _, r := range rows {
		worst = max(worst, 100*r.Off())
		ms, watts := r.Ms, r.Watts
		if r.PublishedMs == 0 {
			ms = 0
		}
		if r.PublishedWatts == 0 {
			watts = 0
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f %%\t%s\n", r.Board, r.Mode, r.Network, r.Precision, r.Place,
			value(ms), value(r.PublishedMs), value(watts), value(r.PublishedWatts), 100*r.Off(), r.Source)
	}
	if err := w.Flush(); err != nil {
		return nil, fmt.Errorf("print the table of boards: %w", err)
	}
	return []Figure{figure("boards_published_rows", float64(len(rows)), "rows"), figure("boards_worst_off", worst, "%").atMost(boardsGoal)}, nil
}
