package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) artifactCmd() *cobra.Command {
	return group("artifact", "how the files of releases travel, and which are kept", "  skein artifact explain meter@2 --device cam-001", a.artifactExplainCmd(), a.artifactGCCmd())
}

func (a *app) artifactExplainCmd() *cobra.Command {
	var device string
	c := &cobra.Command{
		Use: "explain RELEASE", Short: "show for each file what a device fetches and what is saved", Args: args(cobra.ExactArgs(1)),
		Long: `For each file of a release: its size, its chunks, how much of it the release
before shares with it, and the patches from older files. With --device: the
cheapest way from what that device runs now, the bytes predicted, and, once it
has updated, the bytes that it fetched.`,
		Example:           "  skein artifact explain meter@2\n  skein artifact explain meter@2 --device cam-001",
		ValidArgsFunction: a.offer(a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.releases().GetRelease(cmd.Context(), &releasev1.GetReleaseRequest{Release: args[0], Layers: true, Device: device})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "release", r.GetRelease().GetName()+"@"+r.GetRelease().GetVersion())
				layerLines(w, r)
				transferLines(w, r)
			})
		},
	}
	c.Flags().StringVar(&device, "device", "", "device to plan for and to ask about")
	a.offerFlag(c, "device", a.deviceNames)
	return c
}

// layerLines shows each file of a release with what saves bytes on its way.
func layerLines(w io.Writer, r *releasev1.GetReleaseResponse) {
	for _, l := range r.GetLayers() {
		text := fmt.Sprintf("%s  %s  %s", l.GetTitle(), short(l.GetDigest()), size(l.GetBytes()))
		if l.GetImage() {
			text = fmt.Sprintf("of the image  %s  %s", short(l.GetDigest()), sizeText(l.GetBytes()))
		}
		if n := l.GetChunks(); n > 0 {
			text += fmt.Sprintf(", %d chunks", n)
		}
		if r.GetBefore() != "" {
			text += fmt.Sprintf(", %s shared with %s", share(l.GetSharedBytes(), l.GetBytes()), r.GetBefore())
		}
		row(w, "file", text)
		for _, p := range l.GetPatches() {
			row(w, "patch", fmt.Sprintf("%s, from %s: %s (%s)", p.GetKind(), short(p.GetBaseDigest()), size(p.GetBytes()), share(p.GetBytes(), l.GetBytes())))
		}
	}
}

func share(n, of int64) string {
	if of == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(of))
}

func transferLines(w io.Writer, r *releasev1.GetReleaseResponse) {
	t := r.GetTransfer()
	if t == nil {
		return
	}
	from := t.GetFromRelease()
	if from == "" {
		from = "nothing"
	}
	row(w, "device", t.GetDeviceName()+", runs "+from)
	for _, l := range r.GetLayers() {
		row(w, "plan", fmt.Sprintf("%s: %s, %s of %s", l.GetTitle(), l.GetWay(), size(l.GetPredictedBytes()), size(l.GetBytes())))
	}
	row(w, "predicted", size(t.GetPredictedBytes()))
	if t.GetTold() == "" {
		row(w, "fetched", "it has not told of an update to this release")
		return
	}
	row(w, "fetched", size(t.GetFetchedBytes()))
	row(w, "it told", t.GetTold())
}
