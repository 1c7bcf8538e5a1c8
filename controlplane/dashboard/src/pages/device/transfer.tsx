import type { AllowanceUse, Device, TransferState } from "../../gen/skein/fleet/v1/fleet_pb";
import { bytes } from "../../lib/format";
import { Ago, At, Banner, Panel } from "../../ui/basics";

const waitsFor: Record<string, string> = {
  "download window": "Its download waits for the window of its policy",
  "apply window": "The release is on it and waits for the window in which it may be applied",
  allowance: "Its download waits: an allowance of bytes is used up",
  "hold of an application": "The release is on it and an application holds it off",
};

/** What its policy makes of its update: what waits, until when, and what was used. */
export function Transfer({ device: d }: { device: Device }) {
  const t = d.transfer;
  if (!t) return null;
  return (
    <Panel title="Data policy" tail={t.linkClass && <span className="muted small">{t.linkClass} link</span>}>
      <div className="stack-gap">
        {t.waits && <Waits transfer={t} />}
        {t.holds.map((h) => <Banner key={h.owner} tone="info" icon="clock"><strong>{h.owner} holds updates off</strong><span>{h.reason}, until <At at={h.until} /></span></Banner>)}
        {t.used.length > 0 && <ul className="bars" aria-label="Allowances of bytes">{t.used.map((u) => <Use key={`${u.linkClass}/${u.period}`} use={u} />)}</ul>}
        <dl className="facts">
          {!t.waits && <><dt>Waits for</dt><dd>nothing</dd></>}
          <dt>Interface</dt><dd>{t.interface ? <span className="mono small">{t.interface}</span> : <span className="muted">unknown</span>}</dd>
          <dt>Time zone</dt><dd>{t.zone || <span className="muted">unknown</span>}</dd>
        </dl>
      </div>
    </Panel>
  );
}

function Waits({ transfer: t }: { transfer: TransferState }) {
  return (
    <Banner tone="info" icon="clock">
      <strong>{waitsFor[t.waits] ?? `It waits for the ${t.waits}`}</strong>
      <span>{t.until ? <>Until <At at={t.until} />, <Ago at={t.until} />.</> : "An end is not in sight."}</span>
    </Banner>
  );
}

function Use({ use: u }: { use: AllowanceUse }) {
  const limit = Number(u.limit);
  const share = limit > 0 ? Math.min(1, Number(u.bytes) / limit) : 0;
  const fill = share >= 1 ? "f-bad" : share > 0.8 ? "f-warn" : "f-info";
  return (
    <li>
      <span>{u.linkClass}, {u.name}</span>
      <span className="num">{bytes(u.bytes)}{limit > 0 && <span className="muted"> of {bytes(u.limit)}</span>}</span>
      <span className="track"><span className={`fill ${fill}`} style={{ width: `${100 * share}%` }} /></span>
    </li>
  );
}
