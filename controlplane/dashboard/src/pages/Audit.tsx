import { useInfiniteQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { createClient } from "@connectrpc/connect";
import { useEffect, useState } from "react";
import { AuditService, type Entry } from "../gen/skein/audit/v1/audit_pb";
import { diffJson } from "../lib/diff";
import { useDebounced, useTitle } from "../lib/hooks";
import { transport } from "../lib/transport";
import { At, Badge, Bones, Empty, Failure } from "../ui/basics";
import { Icon } from "../ui/Icon";

const client = createClient(AuditService, transport);
const pageSize = 100;

/** RevokeDevice from skein.fleet.v1.FleetService/RevokeDevice. */
function shortAction(action: string): string {
  return action.slice(action.lastIndexOf("/") + 1);
}

export function Audit() {
  useTitle("Audit");
  const search = useSearch({ from: "/shell/audit" });
  const navigate = useNavigate({ from: "/audit" });
  const [actor, setActor] = useState(search.actor ?? "");
  const [subject, setSubject] = useState(search.subject ?? "");
  const held = useDebounced(`${actor}\n${subject}`, 300);
  useEffect(() => {
    const [a, s] = held.split("\n");
    void navigate({ search: { actor: a?.trim() || undefined, subject: s?.trim() || undefined }, replace: true, resetScroll: false });
  }, [held, navigate]);
  const q = useInfiniteQuery({
    queryKey: ["audit", search.actor ?? "", search.subject ?? ""],
    queryFn: ({ pageParam, signal }) => client.listEntries({ actor: search.actor ?? "", subject: search.subject ?? "", limit: pageSize, beforeSequence: pageParam }, { signal }),
    initialPageParam: 0n,
    getNextPageParam: (last) => (last.entries.length < pageSize ? undefined : last.entries.at(-1)?.sequence),
    refetchInterval: 15_000,
  });
  const entries = q.data?.pages.flatMap((p) => p.entries) ?? [];
  return (
    <>
      <div className="head"><div><h1>Audit</h1><p className="sub">Who did what, when, with which effect. Newest first.</p></div></div>
      <div className="filters">
        <div className="search"><Icon name="user" /><input className="input" type="search" aria-label="Actor" placeholder="Actor, for example user:admin" value={actor} onChange={(e) => setActor(e.target.value)} /></div>
        <div className="search"><Icon name="tag" /><input className="input" type="search" aria-label="Subject" placeholder="Subject, for example a device id" value={subject} onChange={(e) => setSubject(e.target.value)} /></div>
      </div>
      <div className="panel">
        {q.isPending ? <div className="pad"><Bones rows={10} h={22} /></div> : q.error && !q.data ? <Failure error={q.error} what="The audit log" retry={() => void q.refetch()} /> : entries.length === 0 ? (
          <Empty title={search.actor || search.subject ? "No entry matches" : "Nothing has been done yet"} icon="audit">{(search.actor || search.subject) && <p>Actor and subject must match as a whole.</p>}</Empty>
        ) : (
          <ol className="audit">{entries.map((e) => <Row key={String(e.sequence)} entry={e} />)}</ol>
        )}
      </div>
      {q.hasNextPage && <div><button type="button" className="btn" disabled={q.isFetchingNextPage} onClick={() => void q.fetchNextPage()}>{q.isFetchingNextPage ? "Loading…" : "Older entries"}</button></div>}
    </>
  );
}

function Row({ entry: e }: { entry: Entry }) {
  const [open, setOpen] = useState(false);
  return (
    <li>
      <button type="button" className="audit-row" aria-expanded={open} onClick={() => setOpen(!open)}>
        <Icon name={open ? "up" : "down"} />
        <span className="when"><At at={e.time} /></span>
        <span className="clip">{e.actor}</span>
        <span className="clip what"><strong>{shortAction(e.action)}</strong> <span className="mono small">{e.subject}</span></span>
        <span className="row">{e.error && <span className="t-bad small">error</span>}<Badge word={e.decision.startsWith("denied") ? "denied" : "allowed"} /></span>
      </button>
      {open && <Detail entry={e} />}
    </li>
  );
}

function Detail({ entry: e }: { entry: Entry }) {
  const changes = diffJson(e.before, e.after);
  return (
    <div className="audit-detail stack">
      <dl className="facts">
        <dt>Sequence</dt><dd className="num">{String(e.sequence)}</dd>
        <dt>Action</dt><dd className="mono small">{e.action}</dd>
        <dt>Subject</dt><dd className="mono small">{e.subject || "–"}</dd>
        <dt>Decision</dt><dd>{e.decision}{e.rule && <span className="muted"> by {e.rule}</span>}</dd>
        {e.error && <><dt>Error</dt><dd className="t-bad">{e.error}</dd></>}
      </dl>
      {changes.length > 0 ? (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="What changed"><table className="grid">
          <thead><tr><th>Field</th><th>Before</th><th>After</th></tr></thead>
          <tbody>{changes.map((c) => <tr key={c.path}><td className="mono small">{c.path}</td><td className="mono small t-bad">{c.before ?? "–"}</td><td className="mono small t-ok">{c.after ?? "–"}</td></tr>)}</tbody>
        </table></div>
      ) : <p className="muted small">No field changed.</p>}
    </div>
  );
}
