package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) tokenCmd() *cobra.Command {
	return group("token", "claim tokens that let devices in", "  skein token create --label site=lyon", a.tokenCreateCmd(), a.tokenListCmd(), a.tokenRevokeCmd())
}

func (a *app) tokenCreateCmd() *cobra.Command {
	req := &fleetv1.CreateTokensRequest{}
	var ttl time.Duration
	var labelFlags, serials []string
	var serialsFile string
	c := &cobra.Command{
		Use: "create", Short: "make claim tokens", Args: args(cobra.NoArgs),
		Long: `The claim text is shown once; it holds the secret and the hash of the CA key, so that
the device knows the right server. A token bound to serials, or good for one device,
may approve by itself; others leave devices pending until "skein device approve".

With --serials and --count equal to the number of serials there is one token for each.
The serials file is CSV; its first column is the serial, a header "serial" is skipped.`,
		Example: "  skein token create --label site=lyon --auto-approve\n  skein token create --count 5000 --serials file.csv --auto-approve -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Labels, err = pairs(labelFlags); err != nil {
				return err
			}
			req.Serials = serials
			if serialsFile != "" {
				fromFile, err := readSerials(serialsFile)
				if err != nil {
					return err
				}
				req.Serials = append(req.Serials, fromFile...)
			}
			req.TtlSeconds = int64(ttl.Seconds())
			r, err := a.fleet().CreateTokens(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "ID", "USES", "EXPIRES", "SERIAL", "CLAIM")
				for _, t := range r.GetTokens() {
					row(w, t.GetToken().GetId(), t.GetToken().GetUses(), stamp(t.GetToken().GetExpires()), serialCell(t.GetToken().GetSerials()), t.GetClaim())
				}
			})
		},
	}
	f := c.Flags()
	f.Int32Var(&req.Count, "count", 1, "how many tokens")
	f.Int32Var(&req.Uses, "uses", 1, "how many devices each may enrol")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "life")
	f.StringSliceVar(&labelFlags, "label", nil, "labels that the devices get, key=value")
	f.StringSliceVar(&serials, "serial", nil, "serials that may use it")
	f.StringVar(&serialsFile, "serials", "", "CSV file of serials")
	f.BoolVar(&req.AutoApprove, "auto-approve", false, "devices are enrolled at once")
	noFiles(c, "count", "uses", "ttl", "label", "serial")
	f.BoolVar(&req.Force, "force", false, "allow auto-approve without serials for more than one device")
	return c
}

func serialCell(s []string) string {
	if len(s) > 1 {
		return fmt.Sprintf("%s and %d more", s[0], len(s)-1)
	}
	return strings.Join(s, "")
}

// readSerials reads the first column of a CSV file.
func readSerials(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read serials: %w", err)
	}
	defer f.Close()
	r := csv.NewReader(bufio.NewReader(f))
	r.FieldsPerRecord = -1
	r.TrimLeadingSpace = true
	var out []string
	seen := map[string]int{}
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("read serials %s: %w", path, err)}
		}
		line, _ := r.FieldPos(0)
		s := strings.TrimSpace(rec[0])
		if s == "" || (len(out) == 0 && strings.EqualFold(s, "serial")) {
			continue
		}
		if first, dup := seen[s]; dup {
			return nil, usageError{fmt.Errorf("%s line %d: serial %q stands on line %d too", path, line, s, first)}
		}
		seen[s] = line
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, usageError{fmt.Errorf("%s holds no serials", path)}
	}
	return out, nil
}

func tokenState(t *fleetv1.Token) string {
	switch {
	case t.GetRevoked():
		return "revoked"
	case t.GetUsed() >= t.GetUses():
		return "used up"
	case t.GetExpires() != nil && t.GetExpires().AsTime().Before(time.Now()):
		return "expired"
	}
	return "open"
}

func (a *app) tokenListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list claim tokens", Args: args(cobra.NoArgs), Example: "  skein token list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.fleet().ListTokens(cmd.Context(), &fleetv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "ID", "USED", "STATE", "EXPIRES", "LABELS", "SERIALS", "BY")
				for _, t := range r.GetTokens() {
					row(w, t.GetId(), fmt.Sprintf("%d/%d", t.GetUsed(), t.GetUses()), tokenState(t), stamp(t.GetExpires()), labels(t.GetLabels()), serialCell(t.GetSerials()), t.GetCreatedBy())
				}
			})
		},
	}
}

func (a *app) tokenRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "refuse a token from now on", Args: args(cobra.ExactArgs(1)), Example: "  skein token revoke t-12ab",
		ValidArgsFunction: a.offer(a.tokenNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().RevokeToken(cmd.Context(), &fleetv1.RevokeTokenRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "Revoked token %s.", r.GetToken().GetId()) })
		},
	}
}
