package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/attack"
)

func (a *app) attackCmd() *cobra.Command {
	var list bool
	var only []string
	var parallel int
	cmd := &cobra.Command{
		Use:   "attack",
		Short: "attack a device through its updates, in every way that is known",
		Long: `Carries out attacks on the real agent that is linked to a real control plane in
this process: metadata shown anew, mixed or forged with stolen keys, a stolen
director, mirrors that lie, releases that are made to harm, a disk that somebody
else writes to, networks that do not answer. One line for each attack says what
was measured from the outside:

  refused             reported, and not adopted
  nothing-applied     disk and answers are what they were
  named               the control plane knows the class of the attack
  recovers            the next honest update works

and of those that can only be borne:

  inference-unharmed  the release that ran answers all the time
  condition-named     a condition says what is wrong
  recovers            the next honest update works
  jitter-bounded      tries are spread, neither too many nor too far apart

Each is ok or short; the reason of a short one follows on standard error. The exit
code is 3 when any is short.`,
		Example: `  skein-sim attack
  skein-sim attack --only fast-forward,freeze
  skein-sim attack --list
  skein-sim attack -o json > attacks.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				return a.listAttacks()
			}
			return a.attack(cmd.Context(), only, parallel)
		},
	}
	cmd.Flags().BoolVar(&list, "list", false, "list the attacks and what refuses them")
	cmd.Flags().StringSliceVar(&only, "only", nil, "names of attacks, separated by commas; all when empty")
	cmd.Flags().IntVar(&parallel, "parallel", 12, "attacks at a time")
	return cmd
}

// row is an attack in the list.
type row struct {
	Name    string `json:"name"`
	Row     string `json:"row"`
	Class   string `json:"class"`
	Refuser string `json:"refused_by"`
}

func (a *app) listAttacks() error {
	var rows []row
	for _, at := range attack.List() {
		rows = append(rows, row{at.Name, at.Row, at.Class, at.Refuser})
	}
	return a.emit(rows, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "ATTACK\tKIND\tNAMED\tREFUSED BY")
		for _, r := range rows {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Name, r.Row, r.Class, r.Refuser)
		}
		return t.Flush()
	})
}

func (a *app) attack(ctx context.Context, only []string, parallel int) (err error) {
	if parallel < 1 {
		return usageError{fmt.Errorf("--parallel %d: want at least 1", parallel)}
	}
	if len(only) == 0 {
		for _, at := range attack.List() {
			only = append(only, at.Name)
		}
	}
	dir, err := os.MkdirTemp("", "skein-attack-*")
	if err != nil {
		return fmt.Errorf("make a folder for the attacks: %w", err)
	}
	suite := attack.New(dir, a.logger())
	defer func() { err = errors.Join(err, suite.Close(), os.RemoveAll(dir)) }()
	var short []string
	results, err := suite.RunAll(ctx, only, parallel, func(r attack.Result) {
		if a.output == "text" {
			fmt.Fprintln(a.stdout, r)
		}
		if !r.OK() {
			short = append(short, r.Name)
			for line := range strings.SplitSeq(r.Short(), "\n") {
				fmt.Fprintf(a.stderr, "%s: %s\n", r.Name, line)
			}
		}
	})
	if errors.Is(err, attack.ErrUnknown) {
		return usageError{fmt.Errorf("--only: %w (see: skein-sim attack --list)", err)}
	}
	if err != nil {
		return err
	}
	err = a.emit(results, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d attacks, %d short\n", len(results), len(short))
		return err
	})
	return errors.Join(err, shortError(short))
}

// shortError is nil when no attack was short.
func shortError(short []string) error {
	if len(short) == 0 {
		return nil
	}
	return expectationError{fmt.Errorf("short: %s", strings.Join(short, ", "))}
}
