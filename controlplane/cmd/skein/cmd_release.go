package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) releaseCmd() *cobra.Command {
	return group("release", "signed, immutable releases", "  skein release create meter --model meter@1", a.releaseCreateCmd(), a.releaseListCmd(), a.releaseShowCmd(),
		a.releaseAttestationsCmd(), a.releaseVerifyCmd(), a.releaseExportCmd(), a.releaseImportCmd(), a.releaseReceiptsCmd(), a.releasePublisherCmd())
}

// declaration reads KEY:TYPE[=DEFAULT][!].
func declaration(s string) (*releasev1.ParameterDeclaration, error) {
	spec, required := strings.CutSuffix(s, "!")
	head, def, _ := strings.Cut(spec, "=")
	key, kind, ok := strings.Cut(head, ":")
	if !ok || key == "" || kind == "" {
		return nil, usageError{fmt.Errorf("--param %q: want KEY:TYPE, KEY:TYPE=DEFAULT or KEY:TYPE! (required)", s)}
	}
	return &releasev1.ParameterDeclaration{Key: key, Type: kind, Default: def, Required: required}, nil
}

func (a *app) releaseCreateCmd() *cobra.Command {
	req := &releasev1.CreateReleaseRequest{}
	var soak time.Duration
	var params []string
	var machine machineFlags
	var workload, image, recipe string
	c := &cobra.Command{
		Use: "create NAME", Short: "make a signed release from a model version", Args: args(cobra.ExactArgs(1)),
		Long: "Writes an OCI image index with one manifest per target, lists it in the TUF targets and signs.\nParameter types: string, int, float, bool, url, secret.\n" +
			"With --image the model is served in a container: each target gets the image of its platform. --workload says how it is served (docs/containers.md); without either it is the server command that devices are set up with.",
		Example: "  skein release create meter --model meter@1\n  skein release create meter --model meter@1 --recipe fp16\n  skein release create meter --model meter@2 --param camera_url:url! --param threshold:float=0.8 --soak 30s\n" +
			"  skein release create meter --model meter@2 --image triton:25.08 --workload workload.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			req.SoakSeconds = int64(soak.Seconds())
			for _, p := range params {
				d, err := declaration(p)
				if err != nil {
					return err
				}
				req.Parameters = append(req.Parameters, d)
			}
			layers, err := a.machineLayers(cmd.Context(), machine)
			if err != nil {
				return err
			}
			req.Machine = layers
			if workload != "" {
				if req.Workload, err = os.ReadFile(workload); err != nil {
					return fmt.Errorf("read workload: %w", err)
				}
			}
			if image != "" {
				if req.Image, err = a.imageFor(cmd.Context(), image, req.GetName()); err != nil {
					return err
				}
			}
			if recipe != "" {
				if req.Recipe, err = recipeText(recipe); err != nil {
					return err
				}
			}
			r, err := a.releases().CreateRelease(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { releaseDetails(w, r.GetRelease()) })
		},
	}
	f := c.Flags()
	f.StringVar(&req.Model, "model", "", "model version, NAME@VERSION")
	f.StringVar(&req.Version, "version", "", "version text; default is the next number")
	f.StringSliceVar(&req.Targets, "target", nil, "targets to serve; default is every target of the fleet")
	f.StringArrayVar(&params, "param", nil, "declare a parameter: KEY:TYPE[=DEFAULT] or KEY:TYPE!")
	f.BoolVar(&req.Auto, "auto", false, "list it with no hand, within the policy signed for the model")
	f.StringArrayVar(&machine.agents, "agent-binary", nil, "agent that devices switch to with this release: FILE, or FILE:TARGET for one target")
	f.StringArrayVar(&machine.images, "os-image", nil, "image for the idle root file system slot and the target that it leads to: FILE:TARGET:TARGET-AFTER, or FILE::TARGET-AFTER")
	f.StringVar(&recipe, "recipe", "", "targets with TensorRT get engines of this recipe: fp32, fp16, int8, best, a name or a file; default is the ONNX file for all")
	f.StringVar(&image, "image", "", "container image that serves the model: of the registry here (NAME:TAG, NAME@DIGEST), or a file, which is pushed first")
	f.StringVar(&workload, "workload", "", "workload.json, how the model is served")
	f.StringArrayVar(&req.WorkloadTargets, "workload-target", nil, "target that gets --workload and --image; default is every target of the release")
	f.DurationVar(&soak, "soak", 0, "how long a device watches the release before it commits")
	_ = c.MarkFlagRequired("model")
	a.offerFlag(c, "model", a.modelNames)
	a.offerFlag(c, "recipe", a.recipeNames)
	noFiles(c, "version", "target", "param", "soak")
	return c
}

func releaseDetails(w io.Writer, r *releasev1.Release) {
	row(w, "release", r.GetName()+"@"+r.GetVersion())
	if r.GetPending() != "" {
		row(w, "pending", "it "+r.GetPending())
	}
	row(w, "digest", r.GetDigest())
	row(w, "counter", r.GetCounter())
	row(w, "model", fmt.Sprintf("%s@%d", r.GetModel(), r.GetModelVersion()))
	row(w, "size", size(r.GetBytes()))
	row(w, "soak", time.Duration(r.GetSoakSeconds())*time.Second)
	row(w, "created", stamp(r.GetCreated())+" by "+r.GetCreatedBy())
	row(w, "running", fmt.Sprintf("%d devices", r.GetRunning()))
	for _, t := range r.GetTargets() {
		row(w, "target", t.GetTarget()+"  "+short(t.GetManifestDigest())+"  "+size(t.GetBytes())+engineOf(t)+brings(r, t.GetTarget()))
	}
	workloadRows(w, r)
	for _, p := range r.GetParameters() {
		text := p.GetKey() + ": " + p.GetType()
		if p.GetDefault() != "" {
			text += " = " + p.GetDefault()
		}
		if p.GetRequired() {
			text += ", required"
		}
		row(w, "parameter", text)
	}
}

// engineOf says that a target gets an engine.
func engineOf(t *releasev1.TargetManifest) string {
	if t.GetEngineDigest() == "" {
		return ""
	}
	return "  engine " + short(t.GetEngineDigest())
}

// runningText counts devices, or says that no device can run it yet.
func runningText(r *releasev1.Release) string {
	if r.GetPending() != "" {
		return "pending signature"
	}
	return strconv.Itoa(int(r.GetRunning()))
}

func (a *app) releaseListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list releases, newest first", Args: args(cobra.NoArgs), Example: "  skein release list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.releases().ListReleases(cmd.Context(), &releasev1.ListReleasesRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "RELEASE", "DIGEST", "MODEL", "TARGETS", "SIZE", "RUNNING", "CREATED", "BY")
				for _, x := range r.GetReleases() {
					row(w, x.GetName()+"@"+x.GetVersion(), short(x.GetDigest()), fmt.Sprintf("%s@%d", x.GetModel(), x.GetModelVersion()),
						len(x.GetTargets()), size(x.GetBytes()), runningText(x), stamp(x.GetCreated()), x.GetCreatedBy())
				}
			})
		},
	}
}

func (a *app) releaseShowCmd() *cobra.Command {
	var index bool
	c := &cobra.Command{
		Use: "show RELEASE", Short: "show a release", Args: args(cobra.ExactArgs(1)),
		Example:           "  skein release show meter@1\n  skein release show meter@1 --index",
		ValidArgsFunction: a.offer(a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.releases().GetRelease(cmd.Context(), &releasev1.GetReleaseRequest{Release: args[0], Layers: true})
			if err != nil {
				return err
			}
			if index {
				_, err := a.env.stdout.Write(r.GetIndex())
				return err
			}
			attached, err := a.attached(cmd.Context(), r.GetRelease())
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				releaseDetails(w, r.GetRelease())
				layerLines(w, r)
				for _, x := range attached {
					row(w, "attested", kindOf(x)+"  "+short(x.GetDocumentDigest())+"  "+sizeText(x.GetBytes()))
				}
			})
		},
	}
	c.Flags().BoolVar(&index, "index", false, "print the signed OCI index as it is")
	return c
}
