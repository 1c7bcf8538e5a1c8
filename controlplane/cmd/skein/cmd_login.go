package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
)

func (a *app) loginCmd() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "login", Short: "check a credential and save it", Args: args(cobra.NoArgs),
		Long:    "Checks the credential against the server and saves both under a context name.\nskeind prints the first admin credential when it starts for the first time.",
		Example: "  skein login --server http://127.0.0.1:8080 --token skp_...",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.config.token == "" {
				return usageError{fmt.Errorf("no credential: give --token or set SKEIN_TOKEN")}
			}
			who, err := a.auth().WhoAmI(cmd.Context(), &authv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			if a.config.file.Contexts == nil {
				a.config.file.Contexts = map[string]login{}
			}
			a.config.file.Contexts[name] = login{Server: a.config.server, Token: a.config.token}
			a.config.file.Current = name
			if err := a.config.save(); err != nil {
				return err
			}
			return a.emit(who, func(w io.Writer) {
				fmt.Fprintf(w, "Logged in to %s as %s (%s), context %q.\n", a.config.server, who.GetCredential().GetName(), who.GetCredential().GetRole(), name)
			})
		},
	}
	c.Flags().StringVar(&name, "name", "default", "name of the saved context")
	return c
}

func (a *app) contextCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "list saved logins", Args: args(cobra.NoArgs), Example: "  skein context list",
		RunE: func(*cobra.Command, []string) error {
			for _, n := range slices.Sorted(maps.Keys(a.config.file.Contexts)) {
				mark := " "
				if n == a.config.file.Current {
					mark = "*"
				}
				fmt.Fprintf(a.env.stdout, "%s %s  %s\n", mark, n, a.config.file.Contexts[n].Server)
			}
			return nil
		},
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "make a saved login the current one", Args: args(cobra.ExactArgs(1)), Example: "  skein context use lab",
		RunE: func(_ *cobra.Command, args []string) error {
			if _, ok := a.config.file.Contexts[args[0]]; !ok {
				return hinted{fmt.Errorf("context %q is not saved", args[0]), "skein context list shows the saved ones"}
			}
			a.config.file.Current = args[0]
			return a.config.save()
		},
	}
	return group("context", "switch between saved logins", "  skein context list", list, use)
}

func (a *app) whoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "show the credential in use", Args: args(cobra.NoArgs), Example: "  skein whoami -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			who, err := a.auth().WhoAmI(cmd.Context(), &authv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			return a.emit(who, func(w io.Writer) {
				c := who.GetCredential()
				row(w, "name", c.GetName())
				row(w, "role", c.GetRole())
				row(w, "tenant", c.GetTenant())
				row(w, "expires", cmp.Or(stamp(c.GetExpires()), "never"))
				row(w, "server", a.config.server+" "+who.GetServerVersion())
			})
		},
	}
}
