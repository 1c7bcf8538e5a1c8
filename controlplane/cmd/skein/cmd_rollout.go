package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"
	"gopkg.in/yaml.v3"

	"github.com/skein-fleet/skein/ota/rollout"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
)

func (a *app) rolloutCmd() *cobra.Command {
	return group("rollout", "move devices to a release in waves, and back", "  skein rollout plan --release meter@2\n  skein rollout start --release meter@2 --watch",
		a.rolloutPlanCmd(), a.rolloutStartCmd(), a.rolloutListCmd(), a.rolloutShowCmd(), a.rolloutWatchCmd(), a.rolloutPauseCmd(),
		a.rolloutResumeCmd(), a.rolloutAbortCmd(), a.rolloutApproveCmd(), a.rolloutExplainCmd())
}

// specFlags are the ways to say what to roll out.
type specFlags struct {
	release, selector, file string
	now                     bool
}

func (s *specFlags) register(a *app, c *cobra.Command) {
	c.Flags().StringVar(&s.release, "release", "", "release, NAME@VERSION or digest")
	c.Flags().StringVarP(&s.selector, "selector", "l", "", "only these devices; default is all that can run it")
	c.Flags().StringVarP(&s.file, "file", "f", "", "spec file, YAML or JSON (ota/rollout/SPEC.md); - reads standard input")
	c.Flags().BoolVar(&s.now, "now", false, "devices wait for no window and no allowance of their policy")
	complete(c, "file", cobra.FixedCompletions([]string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt))
	noFiles(c, "selector")
	a.offerFlag(c, "release", a.releaseNames)
}

// spec reads the file and lays the flags over it. What it leaves out, the
// server fills with the default rollout.
func (s *specFlags) spec(stdin io.Reader) (*structpb.Struct, error) {
	doc := map[string]any{}
	if s.file != "" {
		b, err := readInput(s.file, stdin)
		if err != nil {
			return nil, fmt.Errorf("read spec: %w", err)
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			return nil, usageError{fmt.Errorf("read spec %s: %w", s.file, err)}
		}
	}
	if s.release != "" {
		doc["release"] = s.release
	}
	if s.selector != "" {
		sel, err := rollout.ParseSelector(s.selector)
		if err != nil {
			return nil, usageError{fmt.Errorf("--selector: %w", err)}
		}
		doc["selector"] = sel
	}
	if s.now {
		schedule, ok := doc["schedule"].(map[string]any)
		if doc["schedule"] != nil && !ok {
			return nil, usageError{fmt.Errorf("read spec %s: schedule is no object", s.file)}
		}
		if schedule == nil {
			schedule = map[string]any{}
		}
		schedule["now"] = true
		doc["schedule"] = schedule
	}
	if doc["release"] == nil {
		return nil, usageError{errors.New("no release: give --release, or a spec file that names one")}
	}
	// Through JSON, so that YAML's own types become those that a Struct takes.
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, usageError{fmt.Errorf("read spec %s: %w", s.file, err)}
	}
	out := &structpb.Struct{}
	if err := out.UnmarshalJSON(b); err != nil {
		return nil, usageError{fmt.Errorf("read spec %s: %w", s.file, err)}
	}
	return out, nil
}

func readInput(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, 4<<20))
	}
	return os.ReadFile(path)
}

func (a *app) rolloutPlanCmd() *cobra.Command {
	var s specFlags
	c := &cobra.Command{
		Use: "plan", Short: "dry run: waves, targets, bytes, and devices that can never converge", Args: args(cobra.NoArgs),
		Example: "  skein rollout plan --release meter@2 -l site=lyon\n  skein rollout plan -f rollout.yaml -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := s.spec(a.env.stdin)
			if err != nil {
				return err
			}
			r, err := a.rollouts().PlanRollout(cmd.Context(), &rolloutv1.PlanRolloutRequest{Spec: spec})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "WAVE", "DEVICES", "BYTES", "TARGETS")
				for _, x := range r.GetWaves() {
					first := true
					for _, t := range slices.Sorted(maps.Keys(x.GetByTarget())) {
						cell := fmt.Sprintf("%d of %s", x.GetByTarget()[t], t)
						if first {
							row(w, x.GetName(), x.GetDevices(), size(x.GetBytes()), cell)
						} else {
							row(w, " ", " ", " ", cell)
						}
						first = false
					}
					if first {
						row(w, x.GetName(), x.GetDevices(), size(x.GetBytes()), "")
					}
				}
				for _, u := range r.GetUnreachable() {
					line(w, "cannot converge: %s: %s", u.GetDeviceName(), u.GetReason())
				}
				for _, n := range r.GetNotes() {
					line(w, "note: %s", n)
				}
			})
		},
	}
	s.register(a, c)
	return c
}

func (a *app) rolloutStartCmd() *cobra.Command {
	var s specFlags
	var name string
	var watch bool
	c := &cobra.Command{
		Use: "start", Short: "start a rollout", Args: args(cobra.NoArgs),
		Long:    "Without a spec file: a canary of 2 devices of each target, then 25 %, then the rest, with soak,\ngates and automatic rollback. With --watch the exit code is 7 when it does not succeed.",
		Example: "  skein rollout start --release meter@2 --watch\n  skein rollout start -f rollout.yaml --name spring",
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := s.spec(a.env.stdin)
			if err != nil {
				return err
			}
			r, err := a.rollouts().StartRollout(cmd.Context(), &rolloutv1.StartRolloutRequest{Spec: spec, Name: name})
			if err != nil {
				return err
			}
			if watch {
				a.note("started rollout %s", cmp.Or(r.GetRollout().GetName(), r.GetRollout().GetId()))
				return a.watchRollout(cmd.Context(), r.GetRollout().GetId())
			}
			return a.emit(r, func(w io.Writer) { rolloutDetails(w, r.GetRollout()) })
		},
	}
	s.register(a, c)
	c.Flags().StringVar(&name, "name", "", "name for people")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "watch until it ends")
	return c
}

func (a *app) rolloutListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list rollouts, newest first", Args: args(cobra.NoArgs), Example: "  skein rollout list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.rollouts().ListRollouts(cmd.Context(), &rolloutv1.ListRolloutsRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "ID", "NAME", "RELEASE", "PHASE", "HEALTHY", "FAILED", "BACK", "CREATED", "REASON")
				for _, x := range r.GetRollouts() {
					row(w, short(x.GetId()), x.GetName(), x.GetReleaseName(), x.GetPhase(), fmt.Sprintf("%d/%d", x.GetHealthy(), x.GetDevices()),
						x.GetFailed(), x.GetRolledBack(), stamp(x.GetCreated()), x.GetReason())
				}
			})
		},
	}
}

func rolloutDetails(w io.Writer, x *rolloutv1.Rollout) {
	row(w, "rollout", x.GetId()+" "+x.GetName())
	row(w, "release", x.GetReleaseName()+" "+short(x.GetRelease()))
	row(w, "phase", x.GetPhase())
	if x.GetReason() != "" {
		row(w, "reason", x.GetReason())
	}
	row(w, "created", stamp(x.GetCreated())+" by "+x.GetCreatedBy())
	row(w, "devices", fmt.Sprintf("%d: %d healthy, %d failed, %d rolled back, %d harmed", x.GetDevices(), x.GetHealthy(), x.GetFailed(), x.GetRolledBack(), x.GetHarmed()))
	for _, v := range x.GetWaves() {
		row(w, "wave "+v.GetName(), fmt.Sprintf("%s %d/%d healthy, %d in progress, %d failed  %s", bar(int64(v.GetHealthy()), int64(v.GetDevices()), 16),
			v.GetHealthy(), v.GetDevices(), v.GetInProgress(), v.GetFailed(), v.GetState()))
		if v.GetVerdict() != "" {
			row(w, " ", v.GetVerdict())
		}
		for _, e := range v.GetEvidence() {
			row(w, " ", "  "+e)
		}
	}
}

func (a *app) rolloutShowCmd() *cobra.Command {
	var devices, decisions bool
	c := &cobra.Command{
		Use: "show ROLLOUT", Short: "show a rollout", Args: args(cobra.ExactArgs(1)),
		Long:    "ROLLOUT is an id, a unique prefix of one, or a name.",
		Example: "  skein rollout show spring --devices --decisions", ValidArgsFunction: a.offer(a.rolloutNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.rollouts().GetRollout(cmd.Context(), &rolloutv1.GetRolloutRequest{Rollout: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				rolloutDetails(w, r.GetRollout())
				if devices {
					row(w, "DEVICE", "WAVE", "STATE", "CLASS", "MESSAGE")
					for _, d := range r.GetDevices() {
						row(w, d.GetDeviceName(), d.GetWave(), d.GetState(), d.GetFailureClass(), d.GetMessage())
					}
				}
				if decisions {
					row(w, "TIME", "DECISION", "DEVICE", "WAVE", "REASON")
					for _, d := range r.GetDecisions() {
						row(w, stamp(d.GetTime()), d.GetKind(), short(d.GetDevice()), d.GetWave(), d.GetReason())
					}
				}
			})
		},
	}
	c.Flags().BoolVar(&devices, "devices", false, "also list devices")
	c.Flags().BoolVar(&decisions, "decisions", false, "also list decisions")
	return c
}

func (a *app) rolloutWatchCmd() *cobra.Command {
	return &cobra.Command{
		Use: "watch ROLLOUT", Short: "show progress until the rollout ends", Args: args(cobra.ExactArgs(1)),
		Long: "The exit code is 7 when it does not succeed.", Example: "  skein rollout watch spring", ValidArgsFunction: a.offer(a.rolloutNames),
		RunE: func(cmd *cobra.Command, args []string) error { return a.watchRollout(cmd.Context(), args[0]) },
	}
}

// watchTries is how often in a row a watch is begun again, about two minutes.
const watchTries = 12

// watchRollout shows a rollout until it ends. A rollout goes on without its
// watcher and lives through a restart of the server, so a lost watch is begun
// again.
func (a *app) watchRollout(ctx context.Context, id string) error {
	w := rolloutWatch{app: a, screen: a.screen()}
	for failures := 0; ; {
		before := w.last
		err := w.once(ctx, id)
		switch {
		case ctx.Err() != nil:
			a.note("the rollout goes on; skein rollout watch shows it again")
			return ctx.Err()
		case w.last.GetEnded() != nil:
			return outcome(w.last)
		case err == nil:
			err = errWatchEnded()
		case w.last == nil || !isLost(err):
			return err
		}
		if failures++; w.last != before {
			failures = 1
			a.note("lost the server; trying again")
		} else if failures > watchTries {
			return err
		}
		if err := pause(ctx, min(10*time.Second, 200*time.Millisecond<<failures)); err != nil {
			return err
		}
	}
}

// isLost reports whether an error looks like one of the connection.
func isLost(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeInternal, connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return true
	}
	return false
}

// outcome is the error that an ended rollout stands for.
func outcome(x *rolloutv1.Rollout) error {
	if x.GetPhase() == "succeeded" {
		return nil
	}
	return hinted{rolloutError{x.GetPhase(), x.GetReason()}, "skein rollout show " + short(x.GetId()) + " --devices --decisions"}
}

// rolloutWatch draws bars on a terminal and prints a line for each change
// elsewhere.
type rolloutWatch struct {
	app    *app
	screen *screen
	last   *rolloutv1.Rollout
	line   string
}

func (w *rolloutWatch) once(ctx context.Context, id string) error {
	s, err := w.app.rollouts().WatchRollout(ctx, &rolloutv1.WatchRolloutRequest{Rollout: id})
	if err != nil {
		return err
	}
	return follow(s, w.show)
}

func (w *rolloutWatch) show(m *rolloutv1.WatchRolloutResponse) error {
	w.last = m.GetRollout()
	switch {
	case !w.app.table():
		return w.app.emitEach(m)
	case w.screen.size != nil:
		return w.screen.draw(func(out io.Writer) { rolloutBars(out, w.last) })
	}
	l := rolloutLine(w.last)
	if l == w.line {
		return nil
	}
	w.line = l
	_, err := fmt.Fprintln(w.app.env.stdout, time.Now().Format(time.TimeOnly)+" "+clean(l))
	return err
}

func rolloutLine(x *rolloutv1.Rollout) string {
	parts := []string{x.GetReleaseName() + " " + x.GetPhase()}
	for _, v := range x.GetWaves() {
		p := fmt.Sprintf("%s %s %d/%d", v.GetName(), v.GetState(), v.GetHealthy(), v.GetDevices())
		if v.GetFailed() > 0 {
			p += fmt.Sprintf(" (%d failed)", v.GetFailed())
		}
		parts = append(parts, p)
	}
	if x.GetReason() != "" {
		parts = append(parts, x.GetReason())
	}
	return strings.Join(parts, " | ")
}

// rolloutBars is a rollout in few lines that change little.
func rolloutBars(w io.Writer, x *rolloutv1.Rollout) {
	line(w, "%s  %s  %s", x.GetReleaseName(), x.GetPhase(), x.GetReason())
	for _, v := range x.GetWaves() {
		failed := ""
		if n := v.GetFailed() + v.GetRolledBack(); n > 0 {
			failed = fmt.Sprintf("%d failed", n)
		}
		row(w, " ", v.GetName(), bar(int64(v.GetHealthy()), int64(v.GetDevices()), 28), fmt.Sprintf("%4d/%-4d", v.GetHealthy(), v.GetDevices()),
			v.GetState(), cmp.Or(failed, " "), cmp.Or(v.GetVerdict(), " "))
	}
}

// actOn makes the commands that change a running rollout.
func (a *app) actOn(use, short, example string, act func(ctx context.Context, id, reason string) (*rolloutv1.Rollout, error)) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: use + " ROLLOUT", Short: short, Args: args(cobra.ExactArgs(1)), Example: example, ValidArgsFunction: a.offer(a.rolloutNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			x, err := act(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			return a.emit(x, func(w io.Writer) { rolloutDetails(w, x) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return c
}

func (a *app) rolloutPauseCmd() *cobra.Command {
	return a.actOn("pause", "offer nothing more and stop the clocks", "  skein rollout pause spring --reason 'storm'", func(ctx context.Context, id, reason string) (*rolloutv1.Rollout, error) {
		r, err := a.rollouts().PauseRollout(ctx, &rolloutv1.PauseRolloutRequest{Rollout: id, Reason: reason})
		return r.GetRollout(), err
	})
}

func (a *app) rolloutResumeCmd() *cobra.Command {
	return a.actOn("resume", "go on where it stood", "  skein rollout resume spring", func(ctx context.Context, id, reason string) (*rolloutv1.Rollout, error) {
		r, err := a.rollouts().ResumeRollout(ctx, &rolloutv1.ResumeRolloutRequest{Rollout: id, Reason: reason})
		return r.GetRollout(), err
	})
}

func (a *app) rolloutAbortCmd() *cobra.Command {
	return a.actOn("abort", "stop, and take the release back as the spec says", "  skein rollout abort spring --reason 'wrong camera'", func(ctx context.Context, id, reason string) (*rolloutv1.Rollout, error) {
		r, err := a.rollouts().AbortRollout(ctx, &rolloutv1.AbortRolloutRequest{Rollout: id, Reason: reason})
		return r.GetRollout(), err
	})
}

func (a *app) rolloutApproveCmd() *cobra.Command {
	var wave string
	c := a.actOn("approve", "pass a gate that waits for a person", "  skein rollout approve spring --wave canary", func(ctx context.Context, id, reason string) (*rolloutv1.Rollout, error) {
		r, err := a.rollouts().ApproveWave(ctx, &rolloutv1.ApproveWaveRequest{Rollout: id, Wave: wave, Reason: reason})
		return r.GetRollout(), err
	})
	c.Flags().StringVar(&wave, "wave", "", "name of the wave; default is the current one")
	return c
}

func (a *app) rolloutExplainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "explain ROLLOUT", Short: "name the gate, budget or error that holds a rollout up, now", Args: args(cobra.ExactArgs(1)),
		Example: "  skein rollout explain spring", ValidArgsFunction: a.offer(a.rolloutNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.rollouts().ExplainRollout(cmd.Context(), &rolloutv1.ExplainRolloutRequest{Rollout: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { explanation(w, r.GetSummary(), r.GetReasons()) })
		},
	}
}
