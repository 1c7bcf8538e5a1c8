package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
)

func (a *app) engineCmd() *cobra.Command {
	return group("engine", "TensorRT engines, built once for each target", "  skein engine matrix\n  skein engine build meter@3 --recipe fp16 --all-targets --wait",
		a.engineMatrixCmd(), a.engineBuildCmd(), a.engineListCmd(), a.engineShowCmd(), a.engineExplainCmd(), a.engineLogsCmd(), a.engineCancelCmd())
}

func engineState(s buildv1.EngineState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "ENGINE_STATE_"))
}

// recipeText is what --recipe says: what has a slash or ends in .json is a file,
// and else it is a name.
func recipeText(text string) (string, error) {
	if !strings.Contains(text, "/") && !strings.HasSuffix(text, ".json") {
		return text, nil
	}
	b, err := os.ReadFile(text)
	if err != nil {
		return "", fmt.Errorf("read recipe: %w", err)
	}
	return string(b), nil
}

// note says in a few words what matters of an engine now.
func note(e *buildv1.Engine) string {
	switch r := e.GetRecord(); {
	case r != nil:
		text := fmt.Sprintf("p50 %.3g ms", r.GetLatencyP50Ms())
		if w := r.GetPowerWatts(); w > 0 {
			text += fmt.Sprintf(", %.3g W", w)
		}
		if r.GetGoldenCases() > 0 {
			text += fmt.Sprintf(", golden %d/%d", r.GetGoldenAgreed(), r.GetGoldenCases())
		}
		return text
	case e.GetState() == buildv1.EngineState_ENGINE_STATE_BUILDING:
		return strings.TrimSpace(fmt.Sprintf("%s: %s %d %% %s", e.GetReason(), cmp.Or(e.GetStep(), "begins"), e.GetPercent(), e.GetSaid()))
	}
	return e.GetReason()
}

func engineTable(w io.Writer, es []*buildv1.Engine) {
	row(w, "MODEL", "RECIPE", "TARGET", "STATE", "DEVICES", "PLAN", "WHAT")
	for _, e := range es {
		row(w, fmt.Sprintf("%s@%d", e.GetModel(), e.GetModelVersion()), e.GetRecipe(), e.GetTarget(), engineState(e.GetState()), e.GetDevices(),
			short(e.GetRecord().GetPlanDigest()), note(e))
	}
}

func (a *app) engineMatrixCmd() *cobra.Command {
	req := &buildv1.GetMatrixRequest{}
	var recipe string
	c := &cobra.Command{
		Use: "matrix [MODEL[@VERSION]]", Short: "versions by targets: built, building, queued, missing, refused and why", Args: args(cobra.MaximumNArgs(1)),
		Long:              "Targets are those that devices of the fleet report, reduced to what an engine is bound to. Without --recipe the recipes\nthat were used for a model are shown, or fp16 when none was.",
		Example:           "  skein engine matrix\n  skein engine matrix meter@3 --recipe int8",
		ValidArgsFunction: a.offer(a.modelNames),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) > 0 {
				req.Model = args[0]
			}
			if recipe != "" {
				if req.Recipe, err = recipeText(recipe); err != nil {
					return err
				}
			}
			r, err := a.builds().GetMatrix(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) { engineTable(w, r.GetEngines()) })
		},
	}
	c.Flags().StringVar(&recipe, "recipe", "", "recipe: fp32, fp16, int8, best, a name or a file")
	a.offerFlag(c, "recipe", a.recipeNames)
	return c
}

func (a *app) engineBuildCmd() *cobra.Command {
	req := &buildv1.BuildEnginesRequest{}
	var recipe string
	var wait bool
	c := &cobra.Command{
		Use: "build MODEL[@VERSION]", Short: "have engines built", Args: args(cobra.ExactArgs(1)),
		Long: "Queues a build for each target whose engine is neither built nor being built. A device of that target with the\n" +
			"capability builder does it; nothing is ever built twice. --wait shows the progress and ends with exit code 8 when\n" +
			"an engine could not be built.",
		Example:           "  skein engine build meter@3 --recipe fp16 --all-targets --wait\n  skein engine build meter@3 --recipe recipe.json --target 'linux/arm64;sm=8.7;trt=10.3.0'",
		ValidArgsFunction: a.offer(a.modelNames),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Model = args[0]
			if req.Recipe, err = recipeText(recipe); err != nil {
				return err
			}
			r, err := a.builds().BuildEngines(cmd.Context(), req)
			if err != nil {
				return err
			}
			if wait {
				err = a.awaitEngines(cmd.Context(), r.GetEngines())
			}
			if failed, ok := errors.AsType[buildError](err); err != nil && !ok {
				return err
			} else if ok {
				return errors.Join(a.emit(r, func(w io.Writer) { engineTable(w, r.GetEngines()) }), failed)
			}
			return a.emit(r, func(w io.Writer) { engineTable(w, r.GetEngines()) })
		},
	}
	f := c.Flags()
	f.StringVar(&recipe, "recipe", "", "recipe: fp32, fp16, int8, best, a name or a file")
	f.StringArrayVar(&req.Targets, "target", nil, "target to build for")
	f.BoolVar(&req.AllTargets, "all-targets", false, "build for all targets of the fleet")
	f.Int32Var(&req.Priority, "priority", 0, "-100 to 100, higher goes first")
	f.BoolVar(&wait, "wait", false, "wait until all are built or have failed")
	_ = c.MarkFlagRequired("recipe")
	c.MarkFlagsOneRequired("target", "all-targets")
	c.MarkFlagsMutuallyExclusive("target", "all-targets")
	a.offerFlag(c, "recipe", a.recipeNames)
	noFiles(c, "target", "priority")
	return c
}

// buildError says that engines that were waited for could not be built.
type buildError struct{ error }

const lookEvery = time.Second

// awaitEngines waits until all are built or have failed, and says on standard
// error what changed. It replaces what es says.
func (a *app) awaitEngines(ctx context.Context, es []*buildv1.Engine) error {
	said := make([]string, len(es))
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		open, failed := 0, []string{}
		for i, e := range es {
			if e.GetBuild() != "" {
				r, err := a.builds().GetEngine(ctx, &buildv1.GetEngineRequest{Engine: e.GetBuild()})
				if err != nil {
					return err
				}
				e = r.GetEngine()
				es[i].State, es[i].Reason, es[i].Record, es[i].Step, es[i].Percent, es[i].Said = e.GetState(), e.GetReason(), e.GetRecord(), e.GetStep(), e.GetPercent(), e.GetSaid()
			}
			switch e.GetState() {
			case buildv1.EngineState_ENGINE_STATE_QUEUED, buildv1.EngineState_ENGINE_STATE_BUILDING:
				open++
			case buildv1.EngineState_ENGINE_STATE_REFUSED:
				failed = append(failed, e.GetTarget()+": "+e.GetReason())
			}
			if text := engineState(e.GetState()) + "  " + note(e); text != said[i] {
				said[i] = text
				fmt.Fprintf(a.env.stderr, "%s  %s\n", clean(e.GetTarget()), clean(text))
			}
		}
		if open == 0 {
			if len(failed) > 0 {
				return buildError{fmt.Errorf("not built: %s", strings.Join(failed, "; "))}
			}
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *app) engineListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list builds, newest first", Args: args(cobra.NoArgs), Example: "  skein engine list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.builds().ListBuilds(cmd.Context(), &buildv1.ListBuildsRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "BUILD", "MODEL", "RECIPE", "TARGET", "STATE", "ATTEMPT", "BUILDER", "CREATED", "WHAT")
				for _, e := range r.GetBuilds() {
					row(w, e.GetBuild(), fmt.Sprintf("%s@%d", e.GetModel(), e.GetModelVersion()), e.GetRecipe(), e.GetTarget(), engineState(e.GetState()), e.GetAttempt(),
						e.GetBuilder(), stamp(e.GetCreated()), note(e))
				}
			})
		},
	}
}

func engineDetails(w io.Writer, e *buildv1.Engine) {
	row(w, "model", fmt.Sprintf("%s@%d", e.GetModel(), e.GetModelVersion()))
	row(w, "recipe", e.GetRecipe()+"  "+short(e.GetRecipeDigest()))
	row(w, "target", e.GetTarget())
	row(w, "key", e.GetKey())
	row(w, "state", engineState(e.GetState()))
	row(w, "devices", e.GetDevices())
	if e.GetReason() != "" {
		row(w, "because", e.GetReason())
	}
	if e.GetBuild() != "" {
		row(w, "build", fmt.Sprintf("%s, wanted %s by %s", e.GetBuild(), stamp(e.GetCreated()), e.GetCreatedBy()))
	}
	if e.GetBuilder() != "" {
		row(w, "builder", fmt.Sprintf("%s (%s), attempt %d", e.GetBuilder(), e.GetBuilderId(), e.GetAttempt()))
	}
	for _, t := range e.GetAttempts() {
		row(w, "attempt", fmt.Sprintf("%d on %s ended %s: %s: %s", t.GetAttempt(), t.GetDevice(), stamp(t.GetEnded()), t.GetClass(), t.GetMessage()))
	}
	r := e.GetRecord()
	if r == nil {
		return
	}
	row(w, "plan", r.GetPlanDigest()+"  "+size(r.GetBytes()))
	if r.GetStripped() {
		row(w, "weights", "not in the plan: devices put them in from the ONNX file")
	}
	if r.GetFallback() != "" {
		row(w, "weights", "in the plan, though the recipe asks for a stripped one: "+r.GetFallback())
	}
	row(w, "tensorrt", r.GetTensorrt()+", SM "+r.GetSm()+", on "+r.GetProbed())
	row(w, "latency", fmt.Sprintf("p50 %.4g ms, p99 %.4g ms, %.4g per second", r.GetLatencyP50Ms(), r.GetLatencyP99Ms(), r.GetThroughput()))
	if r.GetPowerWatts() > 0 || r.GetMode() != "" {
		row(w, "power", strings.TrimPrefix(fmt.Sprintf("%.3g W in mode %s", r.GetPowerWatts(), cmp.Or(r.GetMode(), "unknown")), "0 W in "))
	}
	if r.GetGoldenCases() > 0 {
		row(w, "golden", fmt.Sprintf("%d of %d labels agree, off by %.3g at most", r.GetGoldenAgreed(), r.GetGoldenCases(), r.GetGoldenMaxAbs()))
	}
	for _, x := range r.GetWarnings() {
		row(w, "warning", x)
	}
	row(w, "command", strings.Join(r.GetCommand(), " "))
	row(w, "built", stamp(r.GetStarted())+" to "+stamp(r.GetFinished()))
	row(w, "sealed", short(r.GetSealDigest())+", provenance "+short(r.GetProvenanceDigest()))
}

func (a *app) engineShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ENGINE", Short: "show an engine with its record, or a build", Args: args(cobra.ExactArgs(1)),
		Long:              "ENGINE is the id of a build, or 8 digits or more of the engine's key or of its plan.",
		Example:           "  skein engine show b3kq2mfaqzha",
		ValidArgsFunction: a.offer(a.buildNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.builds().GetEngine(cmd.Context(), &buildv1.GetEngineRequest{Engine: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { engineDetails(w, r.GetEngine()) })
		},
	}
}

func (a *app) engineExplainCmd() *cobra.Command {
	req := &buildv1.ExplainEngineRequest{}
	var recipe string
	c := &cobra.Command{
		Use: "explain ENGINE | MODEL@VERSION --recipe RECIPE --target TARGET", Short: "say why an engine stands as it does", Args: args(cobra.ExactArgs(1)),
		Example:           "  skein engine explain b3kq2mfaqzha\n  skein engine explain meter@3 --recipe fp16 --target 'linux/arm64;sm=8.7;trt=10.3.0'",
		ValidArgsFunction: a.offer(a.buildNames),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.GetTarget() != "" || recipe != "" {
				req.Model = args[0]
				if req.Recipe, err = recipeText(recipe); err != nil {
					return err
				}
			} else {
				req.Engine = args[0]
			}
			r, err := a.builds().ExplainEngine(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, engineState(r.GetEngine().GetState()), fmt.Sprintf("%s@%d", r.GetEngine().GetModel(), r.GetEngine().GetModelVersion()), r.GetEngine().GetRecipe(), r.GetEngine().GetTarget())
				for _, reason := range r.GetReasons() {
					line(w, "- %s", reason)
				}
			})
		},
	}
	c.Flags().StringVar(&recipe, "recipe", "", "recipe: fp32, fp16, int8, best, a name or a file")
	c.Flags().StringVar(&req.Target, "target", "", "target of the engine, or of a device")
	c.MarkFlagsRequiredTogether("recipe", "target")
	a.offerFlag(c, "recipe", a.recipeNames)
	noFiles(c, "target")
	return c
}

func (a *app) engineLogsCmd() *cobra.Command {
	req := &buildv1.WatchLogRequest{}
	c := &cobra.Command{
		Use: "logs BUILD", Short: "print what the tool said while it built", Args: args(cobra.ExactArgs(1)),
		Example:           "  skein engine logs b3kq2mfaqzha -f",
		ValidArgsFunction: a.offer(a.buildNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Build = args[0]
			s, err := a.builds().WatchLog(cmd.Context(), req)
			if err != nil {
				return err
			}
			attempt := int32(0)
			for s.Receive() {
				m := s.Msg()
				if attempt != 0 && m.GetAttempt() != attempt {
					fmt.Fprintf(a.env.stderr, "attempt %d\n", m.GetAttempt())
				}
				attempt = m.GetAttempt()
				if err := a.printLog(m); err != nil {
					return errors.Join(err, s.Close())
				}
			}
			return errors.Join(s.Err(), s.Close())
		},
	}
	c.Flags().BoolVarP(&req.Follow, "follow", "f", false, "go on until the build has ended")
	return c
}

// printLog prints a piece of a log: what could move a cursor is marked.
func (a *app) printLog(m *buildv1.WatchLogResponse) error {
	if a.flags.output == "json" {
		return json.NewEncoder(a.env.stdout).Encode(map[string]any{"attempt": m.GetAttempt(), "text": string(m.GetText())})
	}
	var b strings.Builder
	for l := range strings.Lines(string(m.GetText())) {
		body, end := strings.TrimSuffix(l, "\n"), ""
		if body != l {
			end = "\n"
		}
		b.WriteString(clean(strings.TrimSuffix(body, "\r")) + end)
	}
	_, err := io.WriteString(a.env.stdout, b.String())
	return err
}

func (a *app) engineCancelCmd() *cobra.Command {
	req := &buildv1.CancelBuildRequest{}
	c := &cobra.Command{
		Use: "cancel BUILD", Short: "end a build that is queued or under way", Args: args(cobra.ExactArgs(1)),
		Example:           "  skein engine cancel b3kq2mfaqzha --reason 'wrong recipe'",
		ValidArgsFunction: a.offer(a.buildNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Build = args[0]
			r, err := a.builds().CancelBuild(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "build %s is cancelled", args[0]) })
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "for people")
	noFiles(c, "reason")
	return c
}

func (a *app) buildNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.builds().ListBuilds(ctx, &buildv1.ListBuildsRequest{})
	var out []string
	for _, e := range r.GetBuilds() {
		if len(out) < maxOffered {
			out = append(out, cobra.CompletionWithDesc(e.GetBuild(), fmt.Sprintf("%s@%d %s %s", e.GetModel(), e.GetModelVersion(), clean(e.GetTarget()), engineState(e.GetState()))))
		}
	}
	return out, err
}

func (a *app) recipeNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.builds().ListRecipes(ctx, &buildv1.ListRecipesRequest{})
	var out []string
	for _, x := range r.GetRecipes() {
		out = append(out, cobra.CompletionWithDesc(x.GetName(), x.GetSummary()))
	}
	return out, err
}
