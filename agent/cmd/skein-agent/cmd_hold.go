package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/internal/localapi"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
)

func holdCommand(s streams) *cobra.Command {
	var l localFlags
	var owner, reason string
	var d time.Duration
	c := &cobra.Command{
		Use: "hold", Short: "Keep a release from being put to work for a while", Args: noArgs,
		Example: "  skein-agent hold --for 10m --owner line-3 --reason \"a batch runs\"",
		Long: "Keep a release from being put to work for a while, as an application that must not be interrupted.\n" +
			"Downloads go on, what is being put to work already is not stopped, and an operator may pass it.\n" +
			"The policy of the device (longest-hold) caps all holds together until the next update. A second hold of\n" +
			"the same owner replaces the first; it survives a restart of the agent.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.check(); err != nil {
				return err
			}
			if d < time.Second {
				return fmt.Errorf("%w: --for %s: want a time of at least 1s", errUsage, d)
			}
			r, err := localapi.Client(l.socket).Hold(cmd.Context(), &agentlocalv1.HoldRequest{Owner: owner, Reason: reason, Seconds: int64(d / time.Second)})
			if err != nil {
				return unreachable(err, l.socket)
			}
			if l.output == "json" {
				return printJSON(s.out, r)
			}
			capped := ""
			if r.GetCapped() {
				capped = ", which is all that the policy allows"
			}
			_, err = fmt.Fprintf(s.out, "%s holds updates off until %s%s\n", r.GetHold().GetOwner(), r.GetHold().GetUntil().AsTime().Format(time.RFC3339), capped)
			return err
		},
	}
	l.add(c)
	c.Flags().DurationVar(&d, "for", 10*time.Minute, "how long")
	c.Flags().StringVar(&owner, "owner", defaultOwner(), "who holds")
	c.Flags().StringVar(&reason, "reason", "", "why, for people")
	return c
}

// defaultOwner is the user that runs the command.
func defaultOwner() string {
	if u := os.Getenv("USER"); u != "" {
		return u
	}
	return fmt.Sprintf("uid-%d", os.Getuid())
}

func releaseHoldCommand(s streams) *cobra.Command {
	var l localFlags
	var owner string
	var all bool
	c := &cobra.Command{
		Use: "release-hold", Short: "Let updates be put to work again", Args: noArgs,
		Example: "  skein-agent release-hold --owner line-3\n  skein-agent release-hold --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.check(); err != nil {
				return err
			}
			if all {
				owner = ""
			}
			r, err := localapi.Client(l.socket).ReleaseHold(cmd.Context(), &agentlocalv1.ReleaseHoldRequest{Owner: owner})
			if err != nil {
				return unreachable(err, l.socket)
			}
			if l.output == "json" {
				return printJSON(s.out, r)
			}
			_, err = fmt.Fprintf(s.out, "%d holds released\n", r.GetReleased())
			return err
		},
	}
	l.add(c)
	c.Flags().StringVar(&owner, "owner", defaultOwner(), "whose hold")
	c.Flags().BoolVar(&all, "all", false, "those of all")
	return c
}

func traceCommand(s streams) *cobra.Command {
	var l localFlags
	var limit int32
	c := &cobra.Command{
		Use: "trace", Short: "Show the last updates step by step, with how long each took", Args: noArgs,
		Example: "  skein-agent trace\n  skein-agent trace -n 1 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.check(); err != nil {
				return err
			}
			r, err := localapi.Client(l.socket).Trace(cmd.Context(), &agentlocalv1.TraceRequest{Limit: limit})
			if err != nil {
				return unreachable(err, l.socket)
			}
			if l.output == "json" {
				return printJSON(s.out, r)
			}
			if len(r.GetUpdates()) == 0 {
				fmt.Fprintln(s.out, "no update yet")
			}
			for _, u := range r.GetUpdates() {
				if err := printTrace(s.out, u); err != nil {
					return err
				}
			}
			return nil
		},
	}
	l.add(c)
	c.Flags().Int32VarP(&limit, "updates", "n", 0, "most updates to show; 0 for all that are kept")
	return c
}

func printTrace(out io.Writer, u *agentlocalv1.UpdateTrace) error {
	name := u.GetReleaseName()
	if name == "" {
		name = u.GetRelease()
	}
	span := func(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }
	fmt.Fprintf(out, "%s %s, began %s, took %s\n", name, u.GetOutcome(), u.GetBegan().AsTime().Format(time.RFC3339), span(u.GetMilliseconds()))
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	began := u.GetBegan().AsTime()
	for _, st := range u.GetSteps() {
		took := ""
		if st.GetState() == "started" {
			took = span(st.GetMilliseconds()).String()
		}
		fmt.Fprintf(w, "  +%s\t%s\t%s\t%s\t%s\n", st.GetTime().AsTime().Sub(began), st.GetStep(), st.GetState(), took, st.GetMessage())
	}
	return w.Flush()
}
