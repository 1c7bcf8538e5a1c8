import { Link, useParams } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import type { Decision, DeviceExecution, Rollout } from "../gen/skein/rollout/v1/rollout_pb";
import { count, plural, releaseLabel, sentence } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { executionStates, isOpen, rolloutParts } from "../lib/rollout";
import { keepStream, type StreamState } from "../lib/stream";
import { isNotFound, rolloutClient } from "../lib/transport";
import { Ago, Badge, Banner, Bone, Bones, Empty, Failure, Panel, Strip } from "../ui/basics";
import { RolloutActions } from "./rollout/actions";
import { useWaiting } from "./rollout/waiting";
import { Waves } from "./rollout/waves";

interface Watched {
  rollout: Rollout | undefined;
  executions: Map<string, DeviceExecution>;
  decisions: Decision[];
  explain: { summary: string; reasons: string[] } | undefined;
  stream: StreamState;
  error: unknown;
}

const nothing: Watched = { rollout: undefined, executions: new Map(), decisions: [], explain: undefined, stream: "connecting", error: undefined };

/** The rollout by stream; its decisions and explanation are asked again after a change. */
function useWatchedRollout(ref: string): Watched & { refresh: () => void } {
  const [w, setW] = useState<Watched>(nothing);
  const dirty = useRef(false);
  useEffect(() => {
    setW(nothing);
    return keepStream({
      open: (signal) => rolloutClient.watchRollout({ rollout: ref }, { signal }),
      endIsFinal: (last) => last?.rollout !== undefined && !isOpen(last.rollout),
      onMessage: (m) => {
        setW((old) => {
          const executions = m.changed.length > 0 ? new Map(old.executions) : old.executions;
          for (const x of m.changed) executions.set(x.device, x);
          return { ...old, rollout: m.rollout ?? old.rollout, executions };
        });
        dirty.current = true;
      },
      onState: (stream, error) => setW((old) => ({ ...old, stream, error })),
    });
  }, [ref]);

  // At once, then after changes, but at most once a second.
  useEffect(() => {
    const abort = new AbortController();
    let asking = false;
    let asked = 0;
    const ask = async () => {
      asking = true;
      dirty.current = false;
      asked = Date.now();
      try {
        const [full, explain] = await Promise.all([rolloutClient.getRollout({ rollout: ref }, { signal: abort.signal }), rolloutClient.explainRollout({ rollout: ref }, { signal: abort.signal })]);
        const executions = new Map(full.devices.map((x) => [x.device, x]));
        setW((old) => ({ ...old, rollout: full.rollout ?? old.rollout, decisions: full.decisions, executions, explain }));
      } catch (error) {
        if (!abort.signal.aborted) setW((old) => ({ ...old, error }));
      }
      asking = false;
    };
    void ask();
    const timer = setInterval(() => {
      if (!asking && document.visibilityState === "visible" && (dirty.current || Date.now() - asked > 10_000)) void ask();
    }, 1000);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [ref]);
  return { ...w, refresh: () => (dirty.current = true) };
}

export function RolloutPage() {
  const { rollout: ref } = useParams({ from: "/shell/rollouts/$rollout" });
  const { rollout: r, executions, decisions, explain, error, stream, refresh } = useWatchedRollout(ref);
  useTitle(r ? `Rollout ${r.name || r.id}` : "Rollout");
  const list = useWaiting(r, executions);
  if (!r) {
    if (error && isNotFound(error)) return <div className="panel"><Empty title="There is no such rollout" icon="search"><p>No rollout has the id or name “{ref}”.</p><Link to="/rollouts" className="btn">All rollouts</Link></Empty></div>;
    if (error && stream === "refused") return <Failure error={error} what="The rollout" />;
    return <><div className="head" role="status" aria-label="Loading the rollout"><div className="stack"><Bone w={90} /><Bone w={260} h={28} /></div></div><Bone h={88} /><Bone h={320} /></>;
  }
  return (
    <>
      <div className="head">
        <div className="stack tight">
          <nav className="crumbs" aria-label="Path"><Link to="/rollouts">Rollouts</Link><span aria-hidden="true">/</span><span className="mono">{r.id.slice(0, 12)}</span></nav>
          <div className="row wrap"><h1>{r.name || r.id}</h1><Badge word={r.phase} /></div>
          <p className="sub">to <Link to="/releases/$release" params={{ release: r.release }}>{releaseLabel(r.releaseName, r.release)}</Link>, started <Ago at={r.created} />{r.createdBy ? ` by ${r.createdBy}` : ""}{r.ended ? <>, ended <Ago at={r.ended} /></> : ""}</p>
        </div>
        <RolloutActions rollout={r} onDone={refresh} />
      </div>
      {stream === "retrying" && <Banner tone="warn">The live connection is interrupted; what is shown may be old. Connecting again…</Banner>}
      {explain || error ? <Why rollout={r} explain={explain} /> : <Bone h={46} />}
      <Summary rollout={r} waiting={list.filter((x) => x.state === "waiting").length} />
      <Panel title="Waves"><Waves rollout={r} executions={list} onDone={refresh} /></Panel>
      <div className="cols">
        <div className="c7"><Executions list={list} rollout={r} /></div>
        <div className="c5"><Decisions list={decisions} loaded={explain !== undefined} /></div>
      </div>
      <Panel title="Specification">
        <details><summary>Show as JSON</summary><pre className="json" tabIndex={0}>{JSON.stringify(r.spec ?? {}, null, 2)}</pre></details>
      </Panel>
    </>
  );
}

function Why({ rollout: r, explain }: { rollout: Rollout; explain: { summary: string; reasons: string[] } | undefined }) {
  const tone = r.phase === "paused" || r.phase === "rolled-back" ? "warn" : r.phase === "aborted" || r.phase === "aborting" ? "bad" : r.phase === "succeeded" ? "ok" : "info";
  return (
    <Banner tone={tone}>
      <strong>{sentence(explain?.summary || r.reason || `The rollout is ${r.phase}.`)}</strong>
      {explain && explain.reasons.length > 0 && <ul>{explain.reasons.slice(0, 8).map((x) => <li key={x}>{x}</li>)}</ul>}
    </Banner>
  );
}

function Summary({ rollout: r, waiting }: { rollout: Rollout; waiting: number }) {
  const parts = rolloutParts(r, waiting);
  return (
    <section className="panel summary" aria-label="Devices">
      <Strip parts={parts} label="Devices of the rollout" />
      <ul className="legend">
        <li>devices <strong>{count(r.devices)}</strong></li>
        {parts.map((p) => <li key={p.key}><span className={`swatch ${p.fill}`} />{p.label} <strong>{count(p.n)}</strong></li>)}
        <li title="Devices that switched to the release and were judged harmed by it">harmed <strong className={r.harmed > 0 ? "t-bad" : ""}>{count(r.harmed)}</strong></li>
      </ul>
    </section>
  );
}

const page = 50;

function Executions({ list, rollout: r }: { list: DeviceExecution[]; rollout: Rollout }) {
  const [state, setState] = useState("");
  const [shown, setShown] = useState(page);
  const counts = new Map<string, number>();
  for (const x of list) counts.set(x.state, (counts.get(x.state) ?? 0) + 1);
  const order = (s: string) => ["failed", "rolling-back", "rolled-back", "in-progress", "waiting", "offered", "healthy"].indexOf(s) + 1 || 9;
  const rows = list.filter((x) => state === "" || x.state === state).sort((a, b) => order(a.state) - order(b.state) || a.deviceName.localeCompare(b.deviceName, "en", { numeric: true }));
  return (
    <Panel title="Devices" flush tail={
      <label className="row small">Show
        <select className="input slim" value={state} onChange={(e) => { setState(e.target.value); setShown(page); }}>
          <option value="">all ({list.length})</option>
          {executionStates.filter((s) => counts.has(s)).map((s) => <option key={s} value={s}>{s} ({counts.get(s)})</option>)}
        </select>
      </label>
    }>
      {rows.length === 0 ? <p className="body muted">{list.length === 0 ? `No device has been drawn yet${isOpen(r) ? "" : ", and none will be"}.` : "No device is in this state."}</p> : (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="Devices of the rollout">
          <table className="grid">
            <thead><tr><th>Device</th><th>State</th><th>Wave</th><th>Changed</th></tr></thead>
            <tbody>
              {rows.slice(0, shown).map((x) => (
                <tr key={x.device}>
                  <td className="who"><Link to="/devices/$device" params={{ device: x.device }} className="nowrap">{x.deviceName || x.device.slice(0, 8)}</Link>{x.message && <p className="small muted">{x.failureClass && <strong className="t-bad">{x.failureClass} </strong>}{x.message}</p>}</td>
                  <td><Badge word={x.state} /></td>
                  <td>{x.wave || <span className="muted">–</span>}</td>
                  <td><Ago at={x.updated} empty="–" /></td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {rows.length > shown && <div className="body"><button type="button" className="btn small" onClick={() => setShown(shown + 200)}>Show more of {plural(rows.length, "device")}</button></div>}
    </Panel>
  );
}

function Decisions({ list, loaded }: { list: Decision[]; loaded: boolean }) {
  const [shown, setShown] = useState(40);
  const newest = [...list].reverse();
  return (
    <Panel title="Decisions" tail={<span className="muted small">{list.length > 0 ? `${count(list.length)}, newest first` : ""}</span>}>
      {!loaded ? <Bones rows={4} /> : list.length === 0 ? <p className="muted">No decision has been taken yet.</p> : (
        <ol className="timeline">
          {newest.slice(0, shown).map((x, i) => (
            <li key={list.length - i}>
              <span className={`dot ${/abort|fail|rollback|stop/i.test(x.kind) ? "bad" : /pause|wait|inconclusive/i.test(x.kind) ? "warn" : /pass|succe|finish|commit|advance|complete/i.test(x.kind) ? "ok" : "info"}`} />
              <span><strong>{x.kind}</strong>{x.wave ? ` · ${x.wave}` : ""}{x.device ? <> · <Link to="/devices/$device" params={{ device: x.device }}>{x.device.slice(0, 8)}</Link></> : ""}</span>
              <span className="muted small nowrap"><Ago at={x.time} /></span>
              {x.reason && <p className="small">{x.reason}</p>}
            </li>
          ))}
        </ol>
      )}
      {newest.length > shown && <button type="button" className="btn small" onClick={() => setShown(shown + 200)}>Older decisions</button>}
    </Panel>
  );
}

