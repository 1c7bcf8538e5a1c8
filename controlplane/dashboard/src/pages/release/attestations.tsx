import { useQuery } from "@connectrpc/connect-query";
import { type Attestation, ReleaseService } from "../../gen/skein/release/v1/release_pb";
import { bytes } from "../../lib/format";
import { Ago, Bones, Copy, Digest, Failure, Panel } from "../../ui/basics";

const builds: Record<string, string> = {
  release: "how the release was made",
  "model-import": "how the model came here",
  "release-import": "how the bundle came here",
};

/** What it is, for people; the exact types are shown on hover. */
function kind(a: Attestation): { name: string; about: string; foreign?: boolean } {
  if (a.artifactType === "application/vnd.cyclonedx+json") return { name: "ML-BOM", about: "what is in it, CycloneDX" };
  if (a.predicateType.startsWith("https://slsa.dev/provenance/")) {
    const build = /\/attest\/([a-z-]+)\//.exec(a.buildType)?.[1] ?? "";
    return { name: "Provenance", about: builds[build] ?? "SLSA" };
  }
  return { name: a.predicateType || a.artifactType || "Document", about: "not made by a control plane", foreign: true };
}

/** The signed statements and lists that are attached to a release. */
export function Attestations({ release }: { release: string }) {
  const q = useQuery(ReleaseService.method.listAttestations, { release });
  const list = q.data?.attestations ?? [];
  return (
    <Panel title="Attestations" flush tail={q.data?.target && <span className="hide-narrow"><Copy text={q.data.target} shown={q.data.target.length > 34 ? `${q.data.target.slice(0, 33)}…` : q.data.target} what="path in the TUF targets" /></span>}>
      {q.isPending ? <div className="body"><Bones rows={3} /></div> : q.error && !q.data ? <Failure error={q.error} what="The attestations" retry={() => void q.refetch()} /> : list.length === 0 ? (
        <p className="body muted">Nothing is attached to this release: it says neither how it was made nor what is in it.</p>
      ) : (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="Attestations"><table className="grid">
          <thead><tr><th>Kind</th><th>Digests</th><th className="right">Size</th><th>Made</th></tr></thead>
          <tbody>{list.map((a) => <Row key={a.manifestDigest} attestation={a} />)}</tbody>
        </table></div>
      )}
    </Panel>
  );
}

function Row({ attestation: a }: { attestation: Attestation }) {
  const { name, about, foreign } = kind(a);
  return (
    <tr>
      <td className="who" title={[a.artifactType, a.predicateType, a.buildType].filter(Boolean).join("\n")}>{foreign ? <span className="mono">{name}</span> : <strong>{name}</strong>}<p className="small muted">{about}{!a.own && !foreign && ", not made by a control plane"}</p></td>
      <td><div className="row"><span className="muted small digest-of">document</span><Digest value={a.documentDigest} what={`digest of the document, ${name}`} /></div><div className="row"><span className="muted small digest-of">manifest</span><Digest value={a.manifestDigest} what={`digest of the manifest, ${name}`} /></div></td>
      <td className="right num nowrap">{a.bytes > 0n ? bytes(a.bytes) : <span className="muted">–</span>}</td>
      <td className="nowrap"><Ago at={a.created} empty="–" /></td>
    </tr>
  );
}
