import { useState } from "react";
import type { DeviceExecution, Rollout, Wave } from "../../gen/skein/rollout/v1/rollout_pb";
import { count, duration, ms, plural } from "../../lib/format";
import { useNow } from "../../lib/hooks";
import { executionFill, executionStates, isOpen, waveParts } from "../../lib/rollout";
import { useMay } from "../../lib/session";
import { Badge, iconOf, Strip, toneOf } from "../../ui/basics";
import { Icon } from "../../ui/Icon";
import { ReasonDialog } from "./actions";
import { rolloutClient } from "../../lib/transport";

const maxCells = 600; // beyond it a bar says more than squares

export function Waves({ rollout: r, executions, onDone }: { rollout: Rollout; executions: DeviceExecution[]; onDone: () => void }) {
  if (r.waves.length === 0) return <p className="muted">The waves are not drawn yet.</p>;
  const used = new Set(executions.map((x) => x.state));
  return (
    <div className="stack-gap">
      <ol className="waves">
        {r.waves.map((w, i) => (
          <WaveItem key={w.name} wave={w} index={i} rollout={r} executions={executions.filter((x) => x.wave === w.name)} onDone={onDone} />
        ))}
      </ol>
      <ul className="legend" aria-label="Colours of the squares">
        {executionStates.filter((s) => used.has(s) || ["healthy", "in-progress", "failed", "queued"].includes(s)).map((s) => (
          <li key={s}><span className={`swatch ${executionFill[s]}`} />{s}</li>
        ))}
      </ul>
    </div>
  );
}

function WaveItem({ wave: w, index, rollout: r, executions, onDone }: { wave: Wave; index: number; rollout: Rollout; executions: DeviceExecution[]; onDone: () => void }) {
  const now = useNow();
  const [asking, setAsking] = useState(false);
  const may = useMay("operator");
  const state = !isOpen(r) && ["running", "soaking"].includes(w.state) ? "stopped" : w.state || "waiting";
  const started = ms(w.started);
  const ended = ms(w.ended);
  const waiting = executions.filter((x) => x.state === "waiting").length;
  const settled = w.healthy + w.failed + w.rolledBack;
  const manual = approvalOf(r, index) === "manual" && w.verdict === "pass" && index === r.currentWave && index < r.waves.length - 1;
  const waits = isOpen(r) && (state === "inconclusive" || manual);
  const tone = toneOf(state);
  return (
    <li className="wave">
      <div className="knot"><span className={`mark ${tone}`}>{state === "waiting" ? index + 1 : <Icon name={iconOf(state)} className={iconOf(state) === "spin" ? "spin" : ""} />}</span></div>
      <div className="stack wave-body">
        <div className="row wrap spread">
          <div className="row wrap"><h3 className="wave-name">{w.name}</h3><Badge word={state} />{w.verdict && w.verdict !== state && <Badge word={w.verdict}>verdict: {w.verdict}</Badge>}</div>
          <span className="muted small num">
            {count(settled)} of {plural(w.devices, "device")} settled{waiting > 0 && `, ${count(waiting)} waiting for a window or an allowance`}
            {started !== undefined && (ended !== undefined ? `, took ${duration(ended - started)}` : isOpen(r) ? `, running for ${duration(now - started)}` : "")}
          </span>
        </div>
        {w.devices > 0 && (executions.length > 0 && w.devices <= maxCells ? <Cells wave={w} executions={executions} /> : <Strip parts={waveParts(w, waiting)} label={`Wave ${w.name}`} />)}
        {w.evidence.length > 0 && <ul className="evidence">{w.evidence.map((e) => <li key={e}><Icon name="info" />{e}</li>)}</ul>}
        {waits && (
          <div className="row wrap">
            <button type="button" className="btn primary small" disabled={!may} onClick={() => setAsking(true)}><Icon name="check" />Approve wave {w.name}</button>
            <span className="small muted">{state === "inconclusive" ? "The evidence does not decide; a person may." : "Its gate passed; it waits for a person."}</span>
          </div>
        )}
        {asking && (
          <ReasonDialog title={`Approve wave ${w.name}?`} action="Approve" done={`Wave ${w.name} is approved`} required onClose={() => setAsking(false)} run={async (reason) => {
            await rolloutClient.approveWave({ rollout: r.id, wave: w.name, reason });
            onDone();
          }}>
            <p>The next wave may start although {state === "inconclusive" ? "the evidence is inconclusive" : "nobody else has looked"}.</p>
          </ReasonDialog>
        )}
      </div>
    </li>
  );
}

/** Who lets the wave after this one start, as the spec says. */
function approvalOf(r: Rollout, wave: number): unknown {
  const waves = r.spec?.waves;
  const spec = Array.isArray(waves) ? (waves[wave] as { gate?: { approval?: unknown } } | undefined) : undefined;
  return spec?.gate?.approval;
}

function Cells({ wave: w, executions }: { wave: Wave; executions: DeviceExecution[] }) {
  const order = (s: string) => (executionStates as readonly string[]).indexOf(s);
  const sorted = [...executions].sort((a, b) => order(a.state) - order(b.state) || a.device.localeCompare(b.device));
  const rest = Math.max(0, w.devices - executions.length);
  const counts = new Map<string, number>();
  for (const x of executions) counts.set(x.state, (counts.get(x.state) ?? 0) + 1);
  const text = [...counts].map(([s, n]) => `${n} ${s}`).join(", ");
  return (
    <div className="cells" role="img" aria-label={`Devices of wave ${w.name}: ${text}${rest > 0 ? `, ${rest} not drawn` : ""}`}>
      {sorted.map((x) => (
        <span key={x.device} className={`${executionFill[x.state] ?? "f-queue"} ${["in-progress", "rolling-back"].includes(x.state) ? "moving" : ""}`} title={`${x.deviceName || x.device}: ${x.state}${x.message ? `, ${x.message}` : ""}`} />
      ))}
      {Array.from({ length: rest }, (_, i) => <span key={i} className="f-queue" title="queued" />)}
    </div>
  );
}
