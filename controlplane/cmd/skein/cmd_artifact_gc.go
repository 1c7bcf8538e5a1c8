package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
)

func (a *app) artifactGCCmd() *cobra.Command {
	var dry bool
	var grace time.Duration
	c := &cobra.Command{
		Use: "gc", Short: "remove files on the server that nothing refers to", Args: args(cobra.NoArgs),
		Long: `Removes files that no model, release, patch, chunk index or registry entry
refers to. One that was uploaded, read or asked for within the grace time is
kept, so that nothing is lost between an upload and the model or release made
of it; what was asked for before the server started is not known, so all files
count as used then. Uploads under way are never touched.`,
		Example: "  skein artifact gc --dry-run\n  skein artifact gc --grace 72h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if grace <= 0 {
				return usageError{errors.New("--grace: want a time as 24h")}
			}
			client := artifactv1connect.NewStorageServiceClient(a.http(), a.config.server)
			r, err := client.CollectGarbage(cmd.Context(), &artifactv1.CollectGarbageRequest{DryRun: dry, GraceSeconds: int64(grace / time.Second)})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				for _, b := range r.GetBlobs() {
					row(w, short(b.GetDigest()), size(b.GetSize()), "last used "+ago(b.GetTouched()))
				}
				verb := "removed"
				if dry {
					verb = "would be removed"
				}
				line(w, "%d files (%s) %s, %d (%s) stay%s.", r.GetRemoved(), size(r.GetBytes()), verb, r.GetKept(), size(r.GetKeptBytes()), graceText(r.GetInGrace()))
			})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	c.Flags().DurationVar(&grace, "grace", 24*time.Hour, "how long a file is kept after it was last used, at least 1h")
	return c
}

func graceText(n int32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of them only for the grace time", n)
}
