package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
)

// lister gives what may stand for an argument or the value of a flag.
type lister func(ctx context.Context, prefix string) ([]string, error)

// offer completes each argument with the list of its kind, and later ones not
// at all. On error it offers nothing, since the shell shows no errors.
func (a *app) offer(kinds ...lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(kinds) || a.loadConfig() != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out, err := kinds[len(args)](cmd.Context(), prefix)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// offerFlag completes the value of a flag.
func (a *app) offerFlag(c *cobra.Command, flag string, kind lister) {
	one := a.offer(kind)
	complete(c, flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return one(cmd, nil, prefix)
	})
}

// complete gives a flag a completer; the flag exists, so it cannot fail.
func complete(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	_ = c.RegisterFlagCompletionFunc(flag, f)
}

// fixed gives a flag its few values.
func fixed(c *cobra.Command, flag string, values ...string) {
	complete(c, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// noFiles ends the completion of files by the shell.
func noFiles(c *cobra.Command, flags ...string) {
	for _, f := range flags {
		complete(c, f, cobra.NoFileCompletions)
	}
}

// maxOffered bounds what is offered of a large fleet.
const maxOffered = 100

func (a *app) deviceNames(ctx context.Context, prefix string) ([]string, error) {
	r, err := a.fleet().ListDevices(ctx, &fleetv1.ListDevicesRequest{Search: prefix, PageSize: maxOffered})
	var out []string
	for _, d := range r.GetDevices() {
		out = append(out, cobra.CompletionWithDesc(clean(cmp.Or(d.GetName(), d.GetId())), stateName(d.GetState())+", "+cmp.Or(d.GetRunningReleaseName(), "runs nothing")))
	}
	return out, err
}

func (a *app) releaseNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.releases().ListReleases(ctx, &releasev1.ListReleasesRequest{})
	var out []string
	for _, x := range r.GetReleases() {
		out = append(out, cobra.CompletionWithDesc(x.GetName()+"@"+x.GetVersion(), fmt.Sprintf("%d devices run it", x.GetRunning())))
	}
	return out, err
}

func (a *app) modelNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.models().ListModels(ctx, &artifactv1.ListModelsRequest{})
	var out []string
	for _, m := range r.GetModels() {
		for v := m.GetLatestVersion(); v > 0 && len(out) < maxOffered; v-- {
			out = append(out, fmt.Sprintf("%s@%d", m.GetName(), v))
		}
	}
	return out, err
}

func (a *app) rolloutNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.rollouts().ListRollouts(ctx, &rolloutv1.ListRolloutsRequest{})
	var out []string
	for _, x := range r.GetRollouts() {
		out = append(out, cobra.CompletionWithDesc(clean(cmp.Or(x.GetName(), x.GetId())), x.GetReleaseName()+" "+x.GetPhase()))
	}
	return out, err
}

func (a *app) tokenNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.fleet().ListTokens(ctx, &fleetv1.ListTokensRequest{})
	var out []string
	for _, t := range r.GetTokens() {
		if !t.GetRevoked() {
			out = append(out, cobra.CompletionWithDesc(t.GetId(), tokenState(t)+" "+labels(t.GetLabels())))
		}
	}
	return out, err
}

func (a *app) credentialNames(ctx context.Context, _ string) ([]string, error) {
	r, err := a.auth().ListCredentials(ctx, &authv1.ListCredentialsRequest{})
	var out []string
	for _, c := range r.GetCredentials() {
		if !c.GetRevoked() {
			out = append(out, cobra.CompletionWithDesc(c.GetId(), clean(c.GetName())+" "+c.GetRole()))
		}
	}
	return out, err
}

func (a *app) contextNames(context.Context, string) ([]string, error) {
	return slices.Sorted(maps.Keys(a.config.file.Contexts)), nil
}
