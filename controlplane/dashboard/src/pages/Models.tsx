import { useQuery } from "@connectrpc/connect-query";
import { Link, useParams } from "@tanstack/react-router";
import { ModelService, type ModelVersion } from "../gen/skein/artifact/v1/artifact_pb";
import { bytes, plural } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { isNotFound } from "../lib/transport";
import { Ago, At, Bones, Digest, Empty, Failure, Panel } from "../ui/basics";
import { Mirrors } from "./release/mirrors";
import { ReleaseTabs } from "./Releases";

export function Models() {
  useTitle("Models");
  const q = useQuery(ModelService.method.listModels, {}, { refetchInterval: 10_000 });
  const list = q.data?.models ?? [];
  return (
    <>
      <div className="head"><div><h1>Models</h1><p className="sub">A name and numbered versions, each an ONNX file with its golden set.</p></div></div>
      <ReleaseTabs here="models" />
      <div className="panel">
        {q.isPending ? <div className="pad"><Bones rows={5} h={26} /></div> : q.error && !q.data ? <Failure error={q.error} what="The models" retry={() => void q.refetch()} /> : list.length === 0 ? (
          <Empty title="No models yet" icon="release"><p>Push the first one:</p><pre className="json">skein model push digits digits.onnx --golden golden.json</pre></Empty>
        ) : (
          <table className="grid">
            <thead><tr><th>Model</th><th className="right">Latest version</th><th>First pushed</th></tr></thead>
            <tbody>{list.map((m) => <tr key={m.name} className="link"><td><Link className="cover" to="/models/$model" params={{ model: m.name }}><strong>{m.name}</strong></Link></td><td className="right num">{String(m.latestVersion)}</td><td><Ago at={m.created} /></td></tr>)}</tbody>
          </table>
        )}
      </div>
    </>
  );
}

export function ModelPage() {
  const { model: ref } = useParams({ from: "/shell/models/$model" });
  const q = useQuery(ModelService.method.getModel, { model: ref });
  useTitle(ref);
  if (q.isPending) return <div className="panel pad"><Bones rows={8} /></div>;
  if (!q.data?.model) return isNotFound(q.error) ? <div className="panel"><Empty title="There is no such model" icon="search"><p>No model is called “{ref}”.</p><Link to="/models" className="btn">All models</Link></Empty></div> : <Failure error={q.error} what="The model" retry={() => void q.refetch()} />;
  const versions = [...q.data.versions].sort((a, b) => Number(b.version - a.version));
  return (
    <>
      <div className="head">
        <div className="stack tight">
          <nav className="crumbs" aria-label="Path"><Link to="/models">Models</Link><span aria-hidden="true">/</span><span>{ref}</span></nav>
          <h1>{q.data.model.name}</h1>
          <p className="sub">{plural(versions.length, "version")}, first pushed <Ago at={q.data.model.created} /></p>
        </div>
      </div>
      <div className="stack-gap">{versions.map((v) => <Version key={String(v.version)} version={v} />)}</div>
    </>
  );
}

function Version({ version: v }: { version: ModelVersion }) {
  const metadata = Object.entries(v.metadata).sort(([a], [b]) => a.localeCompare(b));
  return (
    <Panel title={`Version ${v.version}`} tail={<span className="muted small">pushed <Ago at={v.created} />{v.createdBy && ` by ${v.createdBy}`}</span>}>
      <dl className="facts">
        {v.description && <><dt>About</dt><dd>{v.description}</dd></>}
        <dt>ONNX</dt><dd className="row wrap"><Digest value={v.onnx?.digest ?? ""} what="digest of the ONNX file" /><span className="num">{bytes(v.onnx?.size ?? 0)}</span></dd>
        <dt>Golden set</dt><dd className="row wrap">{v.golden?.digest ? <><Digest value={v.golden.digest} what="digest of the golden set" /><span className="num">{bytes(v.golden.size)}</span></> : <span className="t-warn">none: devices cannot prove it</span>}</dd>
        <dt>Mirrors</dt><dd><Mirrors list={v.mirrors} /></dd>
        {metadata.map(([k, value]) => <div key={k} className="contents"><dt>{k}</dt><dd>{value}</dd></div>)}
        <dt>Pushed</dt><dd><At at={v.created} /></dd>
      </dl>
    </Panel>
  );
}
