import { useQuery } from "@connectrpc/connect-query";
import { Link } from "@tanstack/react-router";
import { BuildService, type Engine, EngineState } from "../gen/skein/build/v1/build_pb";
import { plural, targetLabel } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { Ago, Badge, Bones, Digest, Empty, Failure, Panel } from "../ui/basics";
import { ReleaseTabs } from "./Releases";

const words: Record<EngineState, string> = {
  [EngineState.UNSPECIFIED]: "unknown",
  [EngineState.BUILT]: "built",
  [EngineState.BUILDING]: "building",
  [EngineState.QUEUED]: "queued",
  [EngineState.MISSING]: "missing",
  [EngineState.REFUSED]: "refused",
  [EngineState.UNNEEDED]: "unneeded",
};

/** Engines of a version by a recipe, one panel each: versions × targets. */
function groups(list: Engine[]): [string, Engine[]][] {
  const out = new Map<string, Engine[]>();
  for (const e of list) {
    const key = `${e.model} v${e.modelVersion}, recipe ${e.recipe}`;
    out.set(key, [...(out.get(key) ?? []), e]);
  }
  return [...out];
}

export function Engines() {
  useTitle("Engines");
  const q = useQuery(BuildService.method.getMatrix, {}, { refetchInterval: 3_000 });
  const list = q.data?.engines ?? [];
  return (
    <>
      <div className="head"><div><h1>Engines</h1><p className="sub">TensorRT engines: built once for each target, proven where they were built, the same bytes for all its devices.</p></div></div>
      <ReleaseTabs here="engines" />
      {q.isPending ? <div className="panel pad"><Bones rows={6} h={26} /></div> : q.error && !q.data ? <div className="panel"><Failure error={q.error} what="The engines" retry={() => void q.refetch()} /></div> : list.length === 0 ? (
        <div className="panel"><Empty title="No engines yet" icon="release"><p>Push a model and let a device build:</p><pre className="json">skein device label NAME --grant builder{"\n"}skein engine build MODEL --recipe fp16 --all-targets</pre></Empty></div>
      ) : (
        <div className="stack-gap">{groups(list).map(([title, es]) => <Group key={title} title={title} engines={es} />)}</div>
      )}
    </>
  );
}

function Group({ title, engines }: { title: string; engines: Engine[] }) {
  return (
    <Panel title={title} flush>
      <div className="scroll-x" tabIndex={0} role="region" aria-label={title}>
        <table className="grid">
          <thead><tr><th>Target</th><th className="right">Devices</th><th>State</th><th>What</th></tr></thead>
          <tbody>{engines.map((e) => <Row key={e.target} engine={e} />)}</tbody>
        </table>
      </div>
    </Panel>
  );
}

function Row({ engine: e }: { engine: Engine }) {
  return (
    <tr>
      <td title={e.target}>{targetLabel(e.target)}</td>
      <td className="right num">{e.devices}</td>
      <td className="nowrap"><Badge word={words[e.state]} /></td>
      <td><What engine={e} /></td>
    </tr>
  );
}

function What({ engine: e }: { engine: Engine }) {
  const r = e.record;
  if (r) {
    const figures = [`${r.latencyP50Ms.toPrecision(3)} ms, p99 ${r.latencyP99Ms.toPrecision(3)} ms`];
    if (r.powerWatts > 0) figures.push(`${r.powerWatts.toPrecision(3)} W`);
    if (r.goldenCases > 0n) figures.push(`golden ${r.goldenAgreed} of ${r.goldenCases}`);
    return (
      <span className="row wrap">
        <Digest value={r.planDigest} what="digest of the engine" /><span className="num">{figures.join(" · ")}</span>
        <span className="muted small">built on</span><Link to="/devices/$device" params={{ device: e.builderId }} search={{}}>{e.builder}</Link><span className="muted small"><Ago at={r.finished} /></span>
      </span>
    );
  }
  if (e.state === EngineState.BUILDING) {
    return <span className="row wrap"><span>{`${e.step || "begins"} ${e.percent} % on`}</span><Link to="/devices/$device" params={{ device: e.builderId }} search={{}}>{e.builder}</Link>{e.said && <span className="muted">{e.said}</span>}</span>;
  }
  return <span>{e.reason}{e.attempts.length > 0 && <span className="muted small"> ({plural(e.attempts.length, "attempt")})</span>}</span>;
}
