import { useQuery } from "@connectrpc/connect-query";
import type { Release } from "../../gen/skein/release/v1/release_pb";
import { type Draft, type Need, TrustService } from "../../gen/skein/trust/v1/trust_pb";
import { plural, sentence } from "../../lib/format";
import { explainError } from "../../lib/transport";
import { Badge, Banner, Bones, Digest, Failure, Panel } from "../../ui/basics";
import { Icon } from "../../ui/Icon";

/** Why no device can run the release yet, and what a person does about it. */
export function Pending({ release: r }: { release: Release }) {
  if (!r.pending) return null;
  return (
    <>
      <Banner tone="warn" icon="clock">
        <strong>No device can run it yet: {r.name}@{r.version} {r.pending}</strong>
        <p>Persons sign with keys that this server never sees. Look at what waits with <code>skein trust pending</code>, then sign it with <code>skein trust sign --key FILE</code>.</p>
      </Banner>
      <Signatures />
    </>
  );
}

function Signatures() {
  const q = useQuery(TrustService.method.getTrust, {}, { refetchInterval: 10_000 });
  const drafts = q.data?.status?.drafts ?? [];
  return (
    <Panel title="Signatures of persons" flush>
      {q.isPending ? <div className="body"><Bones rows={4} /></div> : q.error && !q.data ? <Failure error={q.error} what="The signatures" retry={() => void q.refetch()} /> : drafts.length === 0 ? (
        <p className="body muted">Nothing waits for a signature now.</p>
      ) : (
        <ul className="drafts">{drafts.map((d) => <DraftItem key={d.role} draft={d} />)}</ul>
      )}
      {q.error && q.data && <p className="body small t-warn">This may be old: {explainError(q.error)}</p>}
    </Panel>
  );
}

function DraftItem({ draft: d }: { draft: Draft }) {
  return (
    <li className="pad stack">
      <div className="row wrap spread"><h3>{sentence(d.role)}, version {String(d.version)}</h3><Digest value={d.digest} what={`digest of ${d.role}, which is signed`} /></div>
      {d.problem && <Banner tone="bad">{sentence(d.problem)}</Banner>}
      {d.changes.length > 0 && <ul className="json">{d.changes.slice(0, 12).map((c) => <li key={c.sign + c.text}>{c.sign} {c.text}</li>)}{d.changes.length > 12 && <li>and {plural(d.changes.length - 12, "more change")}: skein trust pending</li>}</ul>}
      {d.needs.map((n) => <NeedItem key={n.by} need={n} />)}
    </li>
  );
}

function NeedItem({ need: n }: { need: Need }) {
  const signed = n.keys.filter((k) => k.signed).length;
  const enough = signed >= n.threshold;
  return (
    <div className="stack">
      <div className="row wrap"><Badge word={enough ? "passed" : "pending"}>{signed} of {n.threshold} signed</Badge><span>{n.by}</span></div>
      <ul className="stack tight">
        {n.keys.map((k) => (
          <li key={k.id} className="row small">
            <Icon name={k.signed ? "check" : "key"} className={k.signed ? "t-ok" : "t-off"} />
            <span>{k.name || k.id.slice(0, 12)}</span>
            <span className="muted">{k.signed ? "signed" : enough ? "not needed any more" : "has not signed"}{k.here && ", key of this server"}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}
