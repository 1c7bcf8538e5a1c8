package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchBoardsCmd() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "boards",
		Short: "modelled boards against published latency and power",
		Long: `boards compares latency and power of the modelled boards with every figure that was
published of real ones, by module and power mode, and prints the table.`,
		Example: "  skein-sim bench boards --out bench-out/boards.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			figures, err := a.boards(cmd)
			return a.report(figures, out, err)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the figures, as JSON")
	return cmd
}

// boards prints the table beside what is for programs.
func (a *app) boards(cmd *cobra.Command) ([]bench.Figure, error) {
	to := a.stdout
	if a.output == "json" {
		to = a.stderr
	}
	return bench.Boards(cmd.Context(), to)
}

// withBoards adds the figures of the boards to those of the agent.
func (a *app) withBoards(cmd *cobra.Command, figures []bench.Figure, err error) ([]bench.Figure, error) {
	more, berr := a.boards(cmd)
	return append(figures, more...), errors.Join(err, berr)
}
