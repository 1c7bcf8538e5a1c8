package main

import (
	"io"

	"github.com/spf13/cobra"

	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
)

func (a *app) auditCmd() *cobra.Command {
	req := &auditv1.ListEntriesRequest{}
	list := &cobra.Command{
		Use: "list", Short: "who did what, newest first", Args: args(cobra.NoArgs), Example: "  skein audit list --subject cam-07 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.audit().ListEntries(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "SEQ", "TIME", "ACTOR", "ACTION", "SUBJECT", "DECISION", "RULE", "ERROR")
				for _, e := range r.GetEntries() {
					row(w, e.GetSequence(), stamp(e.GetTime()), e.GetActor(), e.GetAction(), e.GetSubject(), e.GetDecision(), e.GetRule(), e.GetError())
				}
			})
		},
	}
	f := list.Flags()
	f.StringVar(&req.Subject, "subject", "", "only entries about this")
	f.StringVar(&req.Actor, "actor", "", "only entries by this actor")
	f.Int32Var(&req.Limit, "limit", 50, "how many")
	f.Int64Var(&req.BeforeSequence, "before", 0, "only entries with a lower sequence number")
	noFiles(list, "subject", "actor")
	return group("audit", "the audit log", "  skein audit list", list)
}
