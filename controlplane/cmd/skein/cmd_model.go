package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
)

func (a *app) modelCmd() *cobra.Command {
	return group("model", "models and their versions", "  skein model push meter --onnx model.onnx --golden golden.json", a.modelPushCmd(), a.modelListCmd(), a.modelShowCmd())
}

func (a *app) modelPushCmd() *cobra.Command {
	var onnx, golden, description string
	var meta, mirrors []string
	c := &cobra.Command{
		Use: "push NAME", Short: "upload an ONNX file and its golden set as the next version", Args: args(cobra.ExactArgs(1)),
		Long: "Uploads resume where they broke off; bytes that the server has are not sent again.\nPushing the same bytes twice gives the version made the first time.\n" +
			"A file may also be a source for skein-fetch: https://, or s3::, gcs:: or git:: before it; the program skein-fetch must lie beside skein or on the PATH.\n" +
			"Devices with skein-fetch try --mirror sources before the control plane; mirrors must carry no secret.",
		Example: "  skein model push meter --onnx model.onnx --golden golden.json --meta git=4f2a\n" +
			"  skein model push meter --onnx s3::https://s3.eu-west-1.amazonaws.com/models/meter.onnx --golden golden.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			metadata, err := pairs(meta)
			if err != nil {
				return err
			}
			req := &artifactv1.PushModelRequest{Model: args[0], Description: description, Metadata: metadata, Mirrors: mirrors}
			if req.OnnxDigest, err = a.uploadFrom(cmd.Context(), onnx); err != nil {
				return err
			}
			if req.GoldenDigest, err = a.uploadFrom(cmd.Context(), golden); err != nil {
				return err
			}
			r, err := a.models().PushModel(cmd.Context(), req)
			if err != nil {
				return err
			}
			if r.GetExisting() {
				a.kept(req, r.GetVersion())
			}
			return a.emit(r, func(w io.Writer) {
				v := r.GetVersion()
				known := ""
				if r.GetExisting() {
					known = " (pushed before)"
				}
				line(w, "%s@%d  %s  %s%s", v.GetModel(), v.GetVersion(), short(v.GetOnnx().GetDigest()), size(v.GetOnnx().GetSize()), known)
			})
		},
	}
	c.Flags().StringVar(&onnx, "onnx", "", "ONNX file or source")
	c.Flags().StringVar(&golden, "golden", "", "golden set, JSON (format in ota/manifest), file or source")
	c.Flags().StringVar(&description, "description", "", "for people")
	c.Flags().StringArrayVar(&meta, "meta", nil, "key=value to keep with the version")
	c.Flags().StringArrayVar(&mirrors, "mirror", nil, "source outside Skein from which devices may take the ONNX file")
	for _, name := range []string{"onnx", "golden"} {
		_ = c.MarkFlagRequired(name)
	}
	return c
}

// kept says what of a push is not taken: a version that was there keeps what was
// said of it first, since releases of it are signed.
func (a *app) kept(req *artifactv1.PushModelRequest, v *artifactv1.ModelVersion) {
	var lost []string
	if len(req.GetMirrors()) > 0 && !slices.Equal(req.GetMirrors(), v.GetMirrors()) {
		lost = append(lost, "--mirror")
	}
	if len(req.GetMetadata()) > 0 && !maps.Equal(req.GetMetadata(), v.GetMetadata()) {
		lost = append(lost, "--meta")
	}
	if req.GetDescription() != "" && req.GetDescription() != v.GetDescription() {
		lost = append(lost, "--description")
	}
	if len(lost) > 0 {
		fmt.Fprintf(a.env.stderr, "skein: warning: these bytes are %s@%d already, which keeps what was said of it: %s not taken\n", v.GetModel(), v.GetVersion(), strings.Join(lost, ", "))
	}
}

func (a *app) modelListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list models", Args: args(cobra.NoArgs), Example: "  skein model list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.models().ListModels(cmd.Context(), &artifactv1.ListModelsRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "NAME", "LATEST", "CREATED")
				for _, m := range r.GetModels() {
					row(w, m.GetName(), m.GetLatestVersion(), stamp(m.GetCreated()))
				}
			})
		},
	}
}

func (a *app) modelShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME[@VERSION]", Short: "show a model's versions", Args: args(cobra.ExactArgs(1)), Example: "  skein model show meter@2",
		ValidArgsFunction: a.offer(a.modelNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.models().GetModel(cmd.Context(), &artifactv1.GetModelRequest{Model: args[0]})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "VERSION", "ONNX", "SIZE", "GOLDEN", "CREATED", "BY", "MIRRORS", "METADATA", "DESCRIPTION")
				for _, v := range r.GetVersions() {
					row(w, v.GetVersion(), short(v.GetOnnx().GetDigest()), size(v.GetOnnx().GetSize()), short(v.GetGolden().GetDigest()),
						stamp(v.GetCreated()), v.GetCreatedBy(), strings.Join(v.GetMirrors(), " "), labels(v.GetMetadata()), v.GetDescription())
				}
			})
		},
	}
}
