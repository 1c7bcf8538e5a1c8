package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) imageCmd() *cobra.Command {
	return group("image", "container images of model servers", "  skein image push triton:25.08 triton.tar", a.imagePushCmd(), a.imageListCmd(), a.imageShowCmd())
}

func (a *app) imagePushCmd() *cobra.Command {
	return &cobra.Command{
		Use: "push NAME[:TAG] FILE", Short: "push a container image from a file", Args: args(cobra.ExactArgs(2)),
		Long: "FILE is an OCI layout (a folder or a tar archive, as docker buildx build -o type=oci makes) or an archive of docker save or podman save; also gzipped.\n" +
			"Images of several platforms are pushed with all that the file holds. All is hashed first; what the server has is not sent again.\n" +
			"A NAME without a slash is kept below images/. The server is a registry too: docker push, crane push and oras push to it do the same.",
		Example: "  docker save triton:25.08 -o triton.tar && skein image push triton:25.08 triton.tar\n  skein image push vision/server:1 ./layout",
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, tag, err := imageTarget(args[0])
			if err != nil {
				return err
			}
			p, err := a.pushImage(cmd.Context(), repo, tag, args[1])
			if err != nil {
				return err
			}
			r, err := a.releases().GetImage(cmd.Context(), &releasev1.GetImageRequest{Image: p.repository + ":" + p.tag})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "%s:%s  %s  %s, %s sent", p.repository, p.tag, p.digest, sizeText(p.bytes), sizeText(p.sent))
				if len(p.absent) > 0 {
					line(w, "not in the file, so not pushed: %s", strings.Join(p.absent, ", "))
				}
			})
		},
	}
}

func (a *app) imageListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list the container images here", Args: args(cobra.NoArgs), Example: "  skein image list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.releases().ListImages(cmd.Context(), &releasev1.ListImagesRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "IMAGE", "DIGEST", "PLATFORMS", "SIZE", "PUSHED")
				for _, x := range r.GetImages() {
					var platforms []string
					total := int64(0)
					for _, p := range x.GetPlatforms() {
						platforms = append(platforms, platformText(p))
						total += p.GetBytes()
					}
					row(w, x.GetRepository()+":"+x.GetTag(), short(x.GetDigest()), strings.Join(platforms, ", "), size(total), stamp(x.GetCreated()))
				}
			})
		},
	}
}

func platformText(p *releasev1.ImagePlatform) string {
	text := cmp.Or(p.GetPlatform(), "unknown platform")
	if p.GetIncomplete() {
		text += " (incomplete)"
	}
	return text
}

func (a *app) imageShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE", Short: "show an image by platform, and the releases that hold it", Args: args(cobra.ExactArgs(1)),
		Long:    "IMAGE is NAME:TAG, NAME@DIGEST or a digest.",
		Example: "  skein image show triton:25.08",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.releases().GetImage(cmd.Context(), &releasev1.GetImageRequest{Image: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				x := r.GetImage()
				row(w, "image", cmp.Or(strings.TrimSuffix(x.GetRepository()+":"+x.GetTag(), ":"), args[0]))
				row(w, "digest", x.GetDigest())
				if x.GetCreated() != nil {
					row(w, "pushed", stamp(x.GetCreated()))
				}
				for _, p := range x.GetPlatforms() {
					row(w, "platform", fmt.Sprintf("%s  %s  %s in %d layers", platformText(p), short(p.GetManifestDigest()), size(p.GetBytes()), p.GetLayers()))
					row(w, "user", cmp.Or(p.GetUser(), "root"))
					row(w, "command", strings.Join(p.GetCommand(), " "))
				}
				for _, name := range r.GetReleases() {
					row(w, "release", name)
				}
			})
		},
	}
}

// workloadRows show what serves the model of a release, targets with the same
// together.
func workloadRows(w io.Writer, r *releasev1.Release) {
	for _, x := range r.GetWorkloads() {
		text := x.GetTarget() + "  " + x.GetServer()
		switch {
		case x.GetImageReference() != "":
			text += "  in " + x.GetImageReference() + "@" + x.GetImageDigest() + ", from there"
		case x.GetImageDigest() != "":
			text += fmt.Sprintf("  in image %s, %s in %d layers", short(x.GetImageDigest()), size(x.GetImageBytes()), x.GetImageLayers())
		default:
			text += "  by the server command of the device"
		}
		row(w, "workload", text)
	}
}
