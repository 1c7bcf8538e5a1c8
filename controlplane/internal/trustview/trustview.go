// Package trustview turns the state of a trust repository into messages of
// skein.trust.v1: for the server, and for the command line, which shows a
// folder on a stick the way it shows the server. It decides nothing.
package trustview

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skein-fleet/skein/ota/trust"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
)

// Status is the message of st.
func Status(st trust.Status) *trustv1.Status {
	out := &trustv1.Status{Domain: st.Domain, RootDigest: string(st.RootDigest)}
	for _, r := range st.Roles {
		out.Roles = append(out.Roles, &trustv1.Role{Name: r.Role, Version: r.Version, Expires: stamp(r.Expires), Threshold: int32(r.Threshold), Keys: keys(r.Keys)})
	}
	for _, d := range st.Drafts {
		m := &trustv1.Draft{Role: d.Role, Version: d.Version, Expires: stamp(d.Expires), Digest: string(d.Digest), Problem: d.Problem}
		for _, n := range d.Needs {
			m.Needs = append(m.Needs, &trustv1.Need{By: n.By, Threshold: int32(n.Threshold), Keys: keys(n.Keys)})
		}
		for _, c := range d.Changes {
			m.Changes = append(m.Changes, &trustv1.Change{Sign: c.Sign, Text: c.Text})
		}
		out.Drafts = append(out.Drafts, m)
	}
	return out
}

func keys(ks []trust.KeyStatus) []*trustv1.Key {
	out := make([]*trustv1.Key, len(ks))
	for i, k := range ks {
		out[i] = &trustv1.Key{Id: k.ID, Name: k.Name, Signed: k.Signed, Here: k.Here}
	}
	return out
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
