package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
)

func (a *app) loginCmd() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "login", Short: "check a credential and save it", Args: args(cobra.NoArgs),
		Long: `Checks the credential against the server and saves both under a context name.
skeind prints the first admin credential when it starts for the first time.
With --token - it is read from standard input, so that it does not stand in the
history of the shell; without --token a terminal is asked.`,
		Example: "  skein login --server http://127.0.0.1:8080 --token skp_...\n  skein login --token - < skein-data/admin.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.askToken(); err != nil {
				return err
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
				line(w, "Logged in to %s as %s (%s), context %q.", a.config.server, who.GetCredential().GetName(), who.GetCredential().GetRole(), name)
			})
		},
	}
	c.Flags().StringVar(&name, "name", "default", "name of the saved context")
	a.offerFlag(c, "name", a.contextNames)
	return c
}

// askToken takes the credential from standard input or asks for it, where no
// flag or variable gives it.
func (a *app) askToken() error {
	if a.config.token == "-" {
		l, err := bufio.NewReader(io.LimitReader(a.env.stdin, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the credential: %w", err)
		}
		a.config.token = strings.TrimSpace(l)
	} else if f, isFile := a.env.stdin.(*os.File); a.config.token == "" && isFile && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.env.stderr, "Credential for %s: ", a.config.server)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.env.stderr)
		if err != nil {
			return fmt.Errorf("read the credential: %w", err)
		}
		a.config.token = strings.TrimSpace(string(b))
	}
	if a.config.token == "" {
		return usageError{errors.New("no credential: give --token, --token - or SKEIN_TOKEN")}
	}
	return nil
}

func (a *app) contextCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "list saved logins", Args: args(cobra.NoArgs), Example: "  skein context list",
		RunE: func(*cobra.Command, []string) error { return a.listContexts() },
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "make a saved login the current one", Args: args(cobra.ExactArgs(1)), Example: "  skein context use lab",
		ValidArgsFunction: a.offer(a.contextNames),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, ok := a.config.file.Contexts[args[0]]; !ok {
				return unsavedContext(args[0])
			}
			a.config.file.Current = args[0]
			return a.config.save()
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "forget a saved login", Args: args(cobra.ExactArgs(1)), Example: "  skein context remove lab",
		Long:              "The credential stays valid; skein credential revoke ends it.",
		ValidArgsFunction: a.offer(a.contextNames),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, ok := a.config.file.Contexts[args[0]]; !ok {
				return unsavedContext(args[0])
			}
			delete(a.config.file.Contexts, args[0])
			if a.config.file.Current == args[0] {
				a.config.file.Current = ""
			}
			return a.config.save()
		},
	}
	return group("context", "switch between saved logins", "  skein context list", list, use, remove)
}

// savedContext is what is shown of a login; the credential is not.
type savedContext struct {
	Name    string `json:"name"`
	Server  string `json:"server"`
	Current bool   `json:"current"`
}

func (a *app) listContexts() error {
	saved := []savedContext{}
	for _, n := range slices.Sorted(maps.Keys(a.config.file.Contexts)) {
		saved = append(saved, savedContext{n, a.config.file.Contexts[n].Server, n == a.config.file.Current})
	}
	if !a.table() {
		b, err := json.Marshal(map[string]any{"contexts": saved})
		if err != nil {
			return err
		}
		return a.printJSON(b)
	}
	_, err := io.WriteString(a.env.stdout, layOut(func(w io.Writer) {
		row(w, "CURRENT", "NAME", "SERVER")
		for _, s := range saved {
			mark := " "
			if s.Current {
				mark = "*"
			}
			row(w, mark, s.Name, s.Server)
		}
	}, 0))
	return err
}

func (a *app) whoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "show the credential in use and the versions", Args: args(cobra.NoArgs), Example: "  skein whoami -o json",
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
				row(w, "client", version)
			})
		},
	}
}
