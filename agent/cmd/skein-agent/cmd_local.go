package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/skein-fleet/skein/agent/internal/localapi"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/telemetry/probe/tegra"
)

const defaultSocket = "/run/skein-agent/agent.sock"

// localFlags are common to the commands that ask the running agent.
type localFlags struct{ socket, output string }

func (l *localFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&l.socket, "socket", defaultSocket, "unix socket of the agent")
	c.Flags().StringVarP(&l.output, "output", "o", "text", "text or json")
}

func (l *localFlags) check() error {
	if l.output != "text" && l.output != "json" {
		return fmt.Errorf("%w: -o %q: want text or json", errUsage, l.output)
	}
	return nil
}

func printJSON(w io.Writer, m proto.Message) error {
	raw, err := protojson.MarshalOptions{Multiline: true, Indent: "  "}.Marshal(m)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintln(w, string(raw))
	return err
}

func statusCommand(s streams) *cobra.Command {
	var l localFlags
	c := &cobra.Command{Use: "status", Short: "Show what this device runs and how it does", Args: noArgs, Example: "  skein-agent status\n  skein-agent status -o json", RunE: func(cmd *cobra.Command, _ []string) error {
		if err := l.check(); err != nil {
			return err
		}
		st, err := localapi.Client(l.socket).Status(cmd.Context(), &agentlocalv1.StatusRequest{})
		if err != nil {
			return unreachable(err, l.socket)
		}
		if l.output == "json" {
			return printJSON(s.out, st)
		}
		return printStatus(s.out, st)
	}}
	l.add(c)
	return c
}

func printStatus(out io.Writer, st *agentlocalv1.StatusResponse) error {
	d := st.GetDevice()
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	row("device", "%s %s", d.GetId(), d.GetName())
	row("target", "%s", d.GetTarget())
	row("link", "%s since %s %s", st.GetLink(), st.GetLinkSince().AsTime().Format(time.RFC3339), st.GetLinkError())
	row("running", "%s", orNone(d.GetRunningReleaseName()))
	row("desired", "%s (generation %d.%d)", orNone(d.GetDesiredReleaseName()), d.GetHeldGeneration().GetEpoch(), d.GetHeldGeneration().GetCounter())
	row("phase", "%s %s", d.GetPhase(), d.GetStep())
	if d.GetFailure() != "" {
		row("failure", "%s: %s", d.GetFailureClass(), d.GetFailure())
	}
	for _, s := range d.GetSources() {
		row("fetched", "%d bytes by %s for the last update", s.GetBytes(), s.GetName())
	}
	if t := d.GetTransfer(); t != nil {
		row("network", "%s, %s", orUnknown(t.GetInterface()), t.GetLinkClass())
		for _, u := range t.GetUsed() {
			row("allowance", "%d of %d bytes over %s links in %s", u.GetBytes(), u.GetLimit(), u.GetLinkClass(), u.GetName())
		}
		if t.GetWaits() != "" {
			until := "an end is not in sight"
			if u := t.GetUntil(); u != nil {
				until = "until " + u.AsTime().UTC().Format(time.RFC3339)
			}
			row("waits", "for the %s, %s", t.GetWaits(), until)
		}
		for _, h := range t.GetHolds() {
			row("held off", "by %s until %s: %s", h.GetOwner(), h.GetUntil().AsTime().UTC().Format(time.RFC3339), h.GetReason())
		}
	}
	if p := d.GetPower(); p != nil {
		row("power mode", "%s, clocks %s, fan %s", orNone(p.GetMode()), orNone(p.GetClocks()), orNone(p.GetFan()))
		if p.GetZone() != "" {
			row("headroom", "%.1f K below the trip of %s", p.GetHeadroom(), p.GetZone())
		}
	}
	for _, m := range d.GetServers() {
		row("server", "%s", present.ServerLine(m))
	}
	if t := d.GetTap(); t != nil {
		row("tap", "%s, %d requests refused", t.GetAddress(), t.GetRefused())
		for _, a := range t.GetAsked() {
			row("asked", "%s", present.AskedLine(a))
		}
	}
	row("spool", "%d bytes wait, %d messages dropped", st.GetSpoolBytes(), st.GetSpoolDropped())
	for _, c := range d.GetConditions() {
		row(c.GetSeverity(), "%s: %s", c.GetName(), c.GetMessage())
	}
	for _, e := range d.GetJournal() {
		row("journal", "%s %s %s", e.GetStep(), e.GetState(), e.GetMessage())
	}
	return w.Flush()
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown interface"
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func explainCommand(s streams) *cobra.Command {
	var l localFlags
	c := &cobra.Command{Use: "explain", Short: "Say in words what the device does and what holds it up", Args: noArgs, Example: "  skein-agent explain", RunE: func(cmd *cobra.Command, _ []string) error {
		if err := l.check(); err != nil {
			return err
		}
		resp, err := localapi.Client(l.socket).Explain(cmd.Context(), &agentlocalv1.ExplainRequest{})
		if err != nil {
			return unreachable(err, l.socket)
		}
		if l.output == "json" {
			return printJSON(s.out, resp)
		}
		fmt.Fprintln(s.out, resp.GetSummary())
		for _, r := range resp.GetReasons() {
			fmt.Fprintln(s.out, "-", r)
		}
		return nil
	}}
	l.add(c)
	return c
}

func logsCommand(s streams) *cobra.Command {
	var l localFlags
	var limit int32
	c := &cobra.Command{Use: "logs", Short: "Show the newest lines of the agent's log", Args: noArgs, Example: "  skein-agent logs -n 20", RunE: func(cmd *cobra.Command, _ []string) error {
		if err := l.check(); err != nil {
			return err
		}
		resp, err := localapi.Client(l.socket).Logs(cmd.Context(), &agentlocalv1.LogsRequest{Limit: limit})
		if err != nil {
			return unreachable(err, l.socket)
		}
		if l.output == "json" {
			return printJSON(s.out, resp)
		}
		for _, line := range resp.GetLines() {
			fmt.Fprintln(s.out, line)
		}
		return nil
	}}
	l.add(c)
	c.Flags().Int32VarP(&limit, "lines", "n", 100, "most lines to show")
	return c
}

func tegrastatsCommand(s streams) *cobra.Command {
	c := &cobra.Command{Use: "tegrastats", Short: "Work with tegrastats lines", Example: "  tegrastats | skein-agent tegrastats parse"}
	c.AddCommand(&cobra.Command{Use: "parse", Short: "Read lines on standard input, write one JSON object for each", Args: noArgs,
		Example: "  tegrastats --interval 1000 | skein-agent tegrastats parse | jq .power_mw",
		RunE:    func(cmd *cobra.Command, _ []string) error { return parseTegrastats(cmd.Context(), s) }})
	return c
}

func parseTegrastats(ctx context.Context, s streams) error {
	return tegra.ParseStream(ctx, s.in, s.out)
}

func versionCommand(s streams) *cobra.Command {
	var output string
	c := &cobra.Command{Use: "version", Short: "Show the version", Args: noArgs, Example: "  skein-agent version -o json", RunE: func(*cobra.Command, []string) error {
		if output == "json" {
			return json.NewEncoder(s.out).Encode(map[string]string{"version": version, "built": buildTime().Format(time.RFC3339)})
		}
		_, err := fmt.Fprintln(s.out, "skein-agent", version)
		return err
	}}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
