import { useQuery } from "@connectrpc/connect-query";
import { Link, useParams } from "@tanstack/react-router";
import { Fragment } from "react";
import { type Layer, type Release, ReleaseService } from "../gen/skein/release/v1/release_pb";
import { bytes, count, duration, plural, targetLabel } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { isNotFound } from "../lib/transport";
import { Ago, At, Badge, Bones, Copy, Digest, Empty, Failure, Panel } from "../ui/basics";
import { Icon } from "../ui/Icon";
import { Attestations } from "./release/attestations";
import { Pending } from "./release/pending";
import { Sources } from "./release/sources";

export function ReleaseTabs({ here }: { here: "releases" | "models" | "engines" }) {
  return (
    <nav className="tabs" aria-label="Releases, models and engines">
      <Link to="/releases" aria-current={here === "releases" ? "page" : undefined}>Releases</Link>
      <Link to="/models" aria-current={here === "models" ? "page" : undefined}>Models</Link>
      <Link to="/engines" aria-current={here === "engines" ? "page" : undefined}>Engines</Link>
    </nav>
  );
}

export function Releases() {
  useTitle("Releases");
  const q = useQuery(ReleaseService.method.listReleases, {}, { refetchInterval: 10_000 });
  const list = q.data?.releases ?? [];
  return (
    <>
      <div className="head"><div><h1>Releases</h1><p className="sub">What a device runs: signed, immutable, one manifest for each target.</p></div></div>
      <ReleaseTabs here="releases" />
      <div className="panel">
        {q.isPending ? <div className="pad"><Bones rows={6} h={26} /></div> : q.error && !q.data ? <Failure error={q.error} what="The releases" retry={() => void q.refetch()} /> : list.length === 0 ? (
          <Empty title="No releases yet" icon="release"><p>Push a model, then make a release of it:</p><pre className="json">skein model push digits digits.onnx --golden golden.json{"\n"}skein release create meter --model digits@1</pre></Empty>
        ) : (
          <div className="scroll-x" tabIndex={0} role="region" aria-label="Releases">
            <table className="grid">
              <thead><tr><th>Release</th><th>Model</th><th className="right">Running on</th><th className="right">Size</th><th>Targets</th><th>Made</th><th><span className="sr">Actions</span></th></tr></thead>
              <tbody>{list.map((r) => <Row key={r.digest} release={r} />)}</tbody>
            </table>
          </div>
        )}
      </div>
    </>
  );
}

function Row({ release: r }: { release: Release }) {
  return (
    <tr>
      <td className="nowrap"><Link to="/releases/$release" params={{ release: r.digest }}><strong>{r.name}@{r.version}</strong></Link>{r.pending && <> <Badge word="pending">to be signed</Badge></>}</td>
      <td className="nowrap">{r.model ? <Link to="/models/$model" params={{ model: r.model }}>{r.model} v{String(r.modelVersion)}</Link> : <span className="muted">none</span>}</td>
      <td className="right num">{r.running > 0 ? <Link to="/devices" search={{ release: [`${r.name}@${r.version}`] }}>{count(r.running)}</Link> : <span className="muted">0</span>}</td>
      <td className="right num nowrap">{bytes(r.bytes)}</td>
      <td className="num">{count(r.targets.length)}</td>
      <td className="nowrap"><Ago at={r.created} />{r.createdBy && <span className="muted"> by {r.createdBy}</span>}</td>
      <td className="right">{!r.pending && <Link to="/rollouts/new" search={{ release: r.digest }} className="btn small" aria-label={`Roll out ${r.name}@${r.version}`}><Icon name="rollout" />Roll out</Link>}</td>
    </tr>
  );
}

export function ReleasePage() {
  const { release: ref } = useParams({ from: "/shell/releases/$release" });
  const q = useQuery(ReleaseService.method.getRelease, { release: ref, layers: true }, { refetchInterval: (x) => (x.state.data?.release?.pending ? 10_000 : false) });
  const r = q.data?.release;
  useTitle(r ? `${r.name}@${r.version}` : "Release");
  if (q.isPending) return <div className="panel pad"><Bones rows={8} /></div>;
  if (!r) return isNotFound(q.error) ? <div className="panel"><Empty title="There is no such release" icon="search"><p>No release has the digest or name “{ref}”.</p><Link to="/releases" className="btn">All releases</Link></Empty></div> : <Failure error={q.error} what="The release" retry={() => void q.refetch()} />;
  return (
    <>
      <div className="head">
        <div className="stack tight">
          <nav className="crumbs" aria-label="Path"><Link to="/releases">Releases</Link><span aria-hidden="true">/</span><span>{r.name}</span></nav>
          <div className="row wrap"><h1>{r.name}@{r.version}</h1>{r.pending && <Badge word="pending">to be signed</Badge>}</div>
          <p className="sub">made <Ago at={r.created} />{r.createdBy && ` by ${r.createdBy}`}, runs on <Link to="/devices" search={{ release: [`${r.name}@${r.version}`] }}>{plural(r.running, "device")}</Link></p>
        </div>
        {!r.pending && <div className="actions"><Link to="/rollouts/new" search={{ release: r.digest }} className="btn primary"><Icon name="rollout" />Roll out</Link></div>}
      </div>
      <Pending release={r} />
      <div className="cols">
        <div className="c5 stack-gap">
          <Panel title="Release">
            <dl className="facts">
              <dt>Digest</dt><dd><Copy text={r.digest} shown={`${r.digest.slice(0, 26)}…`} what="digest of the release" /></dd>
              <dt>Model</dt><dd>{r.model ? <Link to="/models/$model" params={{ model: r.model }}>{r.model} v{String(r.modelVersion)}</Link> : "none"}</dd>
              <dt>Counter</dt><dd className="num">{String(r.counter)}</dd>
              <dt>Size</dt><dd className="num">{bytes(r.bytes)}</dd>
              <dt>Soak</dt><dd>{r.soakSeconds > 0n ? duration(Number(r.soakSeconds) * 1000) : "none"} on the device</dd>
              {r.agentTargets.length > 0 && <><dt>New agent</dt><dd>for {r.agentTargets.map(targetLabel).join("; ")}</dd></>}
              {r.workloads.map((w) => (
                <Fragment key={w.target}>
                  <dt>Served by</dt>
                  <dd>{targetLabel(w.target)}: {w.server}{w.imageDigest !== "" && <> in {w.imageReference !== "" ? w.imageReference : "image"} <code>{w.imageDigest.slice(7, 19)}</code>{w.imageLayers > 0 && <>, {bytes(w.imageBytes)} in {w.imageLayers} layers</>}</>}</dd>
                </Fragment>
              ))}
              {r.osTargets.length > 0 && <><dt>New OS</dt><dd>for {r.osTargets.map(targetLabel).join("; ")}</dd></>}
              <dt>Made</dt><dd><At at={r.created} /></dd>
            </dl>
          </Panel>
          <Sources release={r} />
          <Panel title="Parameters" flush>
            {r.parameters.length === 0 ? <p className="body muted">It declares none.</p> : (
              <div className="scroll-x" tabIndex={0} role="region" aria-label="Parameters"><table className="grid">
                <thead><tr><th>Key</th><th>Type</th><th>Default</th><th>What it is</th></tr></thead>
                <tbody>{r.parameters.map((p) => <tr key={p.key}><td className="mono">{p.key}{p.required && <span className="muted"> (required)</span>}</td><td>{p.type}</td><td className="mono">{p.default || <span className="muted">–</span>}</td><td>{p.description}</td></tr>)}</tbody>
              </table></div>
            )}
          </Panel>
        </div>
        <div className="c7 stack-gap">
          <Panel title="Targets" flush>
            {r.targets.length === 0 ? <p className="body muted">It serves no target.</p> : (
              <div className="scroll-x" tabIndex={0} role="region" aria-label="Targets"><table className="grid">
                <thead><tr><th>Target</th><th>Manifest</th><th className="right">Size</th></tr></thead>
                <tbody>{r.targets.map((t) => <tr key={t.target}><td title={t.target}>{targetLabel(t.target)}</td><td><Digest value={t.manifestDigest} what="digest of the manifest" /></td><td className="right num nowrap">{bytes(t.bytes)}</td></tr>)}</tbody>
              </table></div>
            )}
          </Panel>
          <Attestations release={r.digest} />
          <Panel title="Files" flush>
            {q.data?.layers.length === 0 ? <p className="body muted">It has no file of its own.</p> : <div className="scroll-x" tabIndex={0} role="region" aria-label="Files"><table className="grid">
              <thead><tr><th>File</th><th className="right">Size</th><th className="right">Shared with {q.data?.before || "no release before"}</th><th>Patches</th></tr></thead>
              <tbody>{q.data?.layers.map((l) => <File key={l.digest} layer={l} compared={!!q.data.before} />)}</tbody>
            </table></div>}
          </Panel>
        </div>
      </div>
    </>
  );
}

/** A file, and how few bytes of it a device may need. */
function File({ layer: l, compared }: { layer: Layer; compared: boolean }) {
  const share = (n: bigint) => `${(l.bytes > 0n ? (100 * Number(n)) / Number(l.bytes) : 0).toFixed(1)} %`;
  return (
    <tr>
      <td>{l.title} <Digest value={l.digest} what={`digest of ${l.title}`} /></td>
      <td className="right num nowrap">{bytes(l.bytes)}</td>
      <td className="right num nowrap">{compared ? <>{share(l.sharedBytes)}{l.chunks > 0 && <span className="muted"> of {plural(l.chunks, "chunk")}</span>}</> : <span className="muted">–</span>}</td>
      <td>{l.patches.length === 0 ? <span className="muted">none</span> : l.patches.map((p) => <div key={p.baseDigest}>{bytes(p.bytes)} ({share(p.bytes)}) from <Digest value={p.baseDigest} what="digest of the older file" /></div>)}</td>
    </tr>
  );
}
