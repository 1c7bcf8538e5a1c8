package main

import (
	"cmp"
	"io"
	"time"

	"github.com/spf13/cobra"

	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
)

func (a *app) credentialCmd() *cobra.Command {
	var role string
	var ttl time.Duration
	create := &cobra.Command{
		Use: "create NAME", Short: "make a credential for a person or a program", Args: args(cobra.ExactArgs(1)),
		Long:    "The token is shown once. Roles: viewer reads, operator acts on devices and rollouts, admin does all.",
		Example: "  skein credential create ci --role operator --ttl 720h",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.auth().CreateCredential(cmd.Context(), &authv1.CreateCredentialRequest{Name: args[0], Role: role, TtlSeconds: int64(ttl.Seconds())})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "id", r.GetCredential().GetId())
				row(w, "role", r.GetCredential().GetRole())
				row(w, "token", r.GetToken())
			})
		},
	}
	create.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	create.Flags().DurationVar(&ttl, "ttl", 0, "life; 0 means that it does not expire")
	fixed(create, "role", "viewer", "operator", "admin")

	list := &cobra.Command{
		Use: "list", Short: "list credentials", Args: args(cobra.NoArgs), Example: "  skein credential list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.auth().ListCredentials(cmd.Context(), &authv1.ListCredentialsRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "ID", "NAME", "ROLE", "STATE", "EXPIRES", "CREATED")
				for _, c := range r.GetCredentials() {
					state := "active"
					if c.GetRevoked() {
						state = "revoked"
					}
					row(w, c.GetId(), c.GetName(), c.GetRole(), state, cmp.Or(stamp(c.GetExpires()), "never"), stamp(c.GetCreated()))
				}
			})
		},
	}
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "refuse a credential from now on", Args: args(cobra.ExactArgs(1)), Example: "  skein credential revoke c-12ab",
		ValidArgsFunction: a.offer(a.credentialNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.auth().RevokeCredential(cmd.Context(), &authv1.RevokeCredentialRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { row(w, "revoked", r.GetCredential().GetName()) })
		},
	}
	return group("credential", "people's and programs' credentials", "  skein credential create ci --role operator", create, list, revoke)
}
