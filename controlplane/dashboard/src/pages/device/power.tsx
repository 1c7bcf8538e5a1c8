import type { Device } from "../../gen/skein/fleet/v1/fleet_pb";
import { Banner, Panel } from "../../ui/basics";

/** How the board runs: its power mode, and what holds it back. */
export function Power({ device: d }: { device: Device }) {
  const p = d.power;
  if (!p) return null;
  const counted = p.overCurrent.filter((c) => c.count > 0n);
  return (
    <Panel title="Power and heat">
      <div className="stack-gap">
        {p.throttle.map((t) => (
          <Banner key={t.name} tone="warn">
            <strong>Slowed down by {t.name.replace("-", " ")}</strong>
            <span>{t.detail}</span>
          </Banner>
        ))}
        <dl className="facts">
          <dt>Mode</dt>
          <dd>{p.mode || <span className="muted">unknown</span>}{p.wanted && p.wanted !== p.mode && <span className="muted"> (wanted: {p.wanted}{p.needsReboot && ", needs a restart"})</span>}</dd>
          {p.clocks && <><dt>Clocks</dt><dd>{p.clocks}</dd></>}
          {p.fan && <><dt>Fan</dt><dd>{p.fan}</dd></>}
          {p.zone && <><dt>Headroom</dt><dd>{p.headroom.toFixed(1)} K <span className="muted">below the trip of {p.zone}</span></dd></>}
          {counted.map((c) => <Counter key={c.name} name={c.name} count={c.count} perHour={c.perHour} />)}
        </dl>
      </div>
    </Panel>
  );
}

function Counter({ name, count, perHour }: { name: string; count: bigint; perHour: bigint }) {
  return <><dt>{name}</dt><dd className="num">{count.toString()} <span className="muted">events, {perHour.toString()} an hour of late</span></dd></>;
}
