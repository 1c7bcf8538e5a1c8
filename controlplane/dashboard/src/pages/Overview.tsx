import { useQuery } from "@connectrpc/connect-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { Count, FleetStatus } from "../gen/skein/fleet/v1/fleet_pb";
import { type Rollout, RolloutService } from "../gen/skein/rollout/v1/rollout_pb";
import { hardwareLabel } from "../lib/device";
import { fleet } from "../lib/fleet";
import { count, percent, plural, targetLabel } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { rolloutParts } from "../lib/rollout";
import { useStore } from "../lib/store";
import type { DeviceSearch, FacetKey } from "../router";
import { Badge, Bone, Bones, Empty, Failure, Panel, type Share, Strip, toneOf } from "../ui/basics";
import { Icon, type IconName } from "../ui/Icon";

const stateOrder = ["online", "offline", "pending", "revoked"];

function named(counts: Count[], key: string): number {
  return counts.find((c) => c.key.toLowerCase().replace("device_state_", "") === key)?.count ?? 0;
}

export function Overview() {
  useTitle("Overview");
  const { status, stream, error } = useStore(fleet);
  const rollouts = useQuery(RolloutService.method.listRollouts, {}, { refetchInterval: 5_000 });
  const open = (rollouts.data?.rollouts ?? []).filter((r) => ["pending", "running", "paused", "aborting"].includes(r.phase));

  if (!status && stream === "refused") return <Failure error={new Error(error)} what="The fleet" />;
  if (status && status.devices === 0 && open.length === 0) return <NoDevices />;
  return (
    <>
      <div className="head">
        <h1>Fleet overview</h1>
      </div>
      <Kpis status={status} />
      <div className="cols">
        <div className="c8 stack-gap">
          <Panel title="By state">{status ? <ByState status={status} /> : <Bones rows={2} />}</Panel>
          <Panel title="Rollouts under way" flush tail={<Link to="/rollouts">All rollouts</Link>}>
            {rollouts.isPending ? (
              <div className="body"><Bones rows={2} /></div>
            ) : rollouts.error && !rollouts.data ? (
              <Failure error={rollouts.error} what="The rollouts" retry={() => void rollouts.refetch()} />
            ) : open.length === 0 ? (
              <p className="body muted">None. Start one from a <Link to="/releases">release</Link>.</p>
            ) : (
              <ul className="attention">
                {open.map((r) => (
                  <OpenRollout key={r.id} rollout={r} />
                ))}
              </ul>
            )}
          </Panel>
        </div>
        <Panel title="Needs attention" className="c4" flush>
          {status ? <Attention status={status} rollouts={open} /> : <div className="body"><Bones rows={5} h={30} /></div>}
        </Panel>
      </div>
      <div className="cols">
        <Panel title="By release" className="c4"><Bars counts={status?.byRelease} total={status?.devices} facet="release" none="No release yet" /></Panel>
        <Panel title="By target" className="c4"><Bars counts={status?.byTarget} total={status?.devices} facet="target" label={targetLabel} none="No target known yet" /></Panel>
        <Panel title="By site" className="c4"><Bars counts={status?.bySite} total={status?.devices} facet="site" none="No device has a site label" /></Panel>
        <Panel title="By hardware" className="c6"><Bars counts={status?.byHardware} total={status?.devices} facet="hardware" label={hardwareLabel} none="No hardware known yet" /></Panel>
        <Panel title="Conditions" className="c6"><Bars counts={status?.byCondition} total={status?.devices} facet="condition" none="No device reports a condition" fill="f-warn" /></Panel>
      </div>
    </>
  );
}

function NoDevices() {
  return (
    <div className="panel">
      <Empty title="No devices yet" icon="device">
        <p>Make a claim token, give it to a device, and it appears here as soon as it calls home.</p>
        <Link to="/enrol" className="btn primary">Enrol devices</Link>
      </Empty>
    </div>
  );
}

function Kpis({ status: s }: { status: FleetStatus | undefined }) {
  const online = s ? named(s.byState, "online") : 0;
  const pending = s ? named(s.byState, "pending") : 0;
  const conditions = s ? s.byCondition.reduce((sum, c) => sum + c.count, 0) : 0;
  return (
    <div className="kpis">
      <Kpi label="Devices" icon="device" value={s?.devices} note={s && (pending > 0 ? `${count(pending)} waiting for approval` : "all approved")} search={{}} />
      <Kpi label="Online" icon="check" value={s && online} note={s && `${percent(online, s.devices)} of the fleet`} search={{ state: ["online"] }} />
      <Kpi label="Converging" icon="spin" value={s?.converging} tone={s && s.converging > 0 ? "info" : ""} note="not yet at what is wanted" search={{ update: ["converging"] }} />
      <Kpi label="Failed" icon="cross" value={s?.failed} tone={s && s.failed > 0 ? "bad" : ""} note="in their last update" search={{ update: ["failed"] }} />
      <Kpi label="Conditions" icon="warn" value={s && conditions} tone={conditions > 0 ? "warn" : ""} note="reported now" search={s && s.byCondition.length > 0 ? { condition: s.byCondition.map((c) => c.key) } : {}} />
    </div>
  );
}

function Kpi({ label, icon, value, note, tone = "", search }: { label: string; icon: IconName; value: number | undefined; note: ReactNode; tone?: string; search: DeviceSearch }) {
  return (
    <Link to="/devices" search={search} className={`panel kpi ${tone}`}>
      <span className="label"><Icon name={icon} />{label}</span>
      <span className="value">{value === undefined ? <Bone w={56} h={30} /> : count(value)}</span>
      <span className="note">{note}</span>
    </Link>
  );
}

function ByState({ status }: { status: FleetStatus }) {
  const parts: Share[] = stateOrder.map((key) => ({ key, label: key, n: named(status.byState, key), fill: `f-${toneOf(key)}` }));
  return (
    <div className="stack">
      <Strip parts={parts} label="Devices by state" />
      <ul className="legend">
        {parts.map((p) => (
          <li key={p.key}>
            <Link to="/devices" search={{ state: [p.key] }}>
              <span className={`swatch ${p.fill}`} />
              {p.label} <strong>{count(p.n)}</strong> <span>{percent(p.n, status.devices)}</span>
            </Link>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Attention({ status, rollouts }: { status: FleetStatus; rollouts: Rollout[] }) {
  const items: ReactNode[] = [];
  const device = (key: string, icon: IconName, tone: string, text: string, search: DeviceSearch) =>
    items.push(
      <li key={key}>
        <Link to="/devices" search={search}><Icon name={icon} className={`t-${tone}`} /><span>{text}</span></Link>
      </li>,
    );
  for (const r of rollouts) {
    const waiting = r.waves.find((w) => w.state === "inconclusive");
    if (r.phase === "paused" || waiting) {
      items.push(
        <li key={r.id}>
          <Link to="/rollouts/$rollout" params={{ rollout: r.id }}>
            <Icon name="pause" className="t-warn" />
            <span>Rollout {r.name || r.id} {waiting ? `waits for a decision on wave ${waiting.name}` : "is paused"}{r.reason ? `: ${r.reason}` : ""}</span>
          </Link>
        </li>,
      );
    }
  }
  if (status.failed > 0) device("failed", "cross", "bad", `${plural(status.failed, "device")} failed the last update`, { update: ["failed"] });
  const pending = named(status.byState, "pending");
  if (pending > 0) device("pending", "clock", "warn", `${plural(pending, "device")} ${pending === 1 ? "waits" : "wait"} for approval`, { state: ["pending"] });
  const offline = named(status.byState, "offline");
  if (offline > 0) device("offline", "cross", "off", `${plural(offline, "device")} offline`, { state: ["offline"] });
  for (const c of status.byCondition.slice(0, 4)) device(`c-${c.key}`, "warn", "warn", `${c.key} on ${plural(c.count, "device")}`, { condition: [c.key] });
  if (items.length === 0) return <p className="body row"><Icon name="check" className="t-ok" />Nothing. Every device is where it should be.</p>;
  return <ul className="attention">{items}</ul>;
}

function OpenRollout({ rollout: r }: { rollout: Rollout }) {
  const wave = r.waves[r.currentWave];
  const parts = rolloutParts(r);
  const done = r.healthy + r.failed + r.rolledBack;
  return (
    <li>
      <Link to="/rollouts/$rollout" params={{ rollout: r.id }}>
        <div className="grow stack">
          <div className="row wrap spread">
            <span className="row"><strong>{r.name || r.id}</strong><Badge word={r.phase} /></span>
            <span className="muted small num">{wave ? `wave ${wave.name} · ` : ""}{count(done)} of {plural(r.devices, "device")}</span>
          </div>
          <Strip parts={parts} label={`Devices of rollout ${r.name || r.id}`} thin />
        </div>
      </Link>
    </li>
  );
}

function Bars({ counts, total, facet, label = (k) => k, none, fill = "f-accent" }: { counts: Count[] | undefined; total: number | undefined; facet: FacetKey; label?: (k: string) => string; none: string; fill?: string }) {
  if (!counts) return <Bones rows={5} h={32} />;
  const list = counts.filter((c) => c.count > 0).sort((a, b) => b.count - a.count);
  if (list.length === 0) return <p className="muted">{none}</p>;
  const whole = Math.max(1, total ?? 0, ...list.map((c) => c.count));
  const shown = list.slice(0, 8);
  return (
    <div className="bars">
      {shown.map((c) => (
        <Link key={c.key} to="/devices" search={{ [facet]: [c.key || "none"] }} title={c.key}>
          <span className="clip">{c.key ? label(c.key) : "none"}</span>
          <span className="num">{count(c.count)}</span>
          <span className="track"><span className={`fill ${fill}`} style={{ width: `${(100 * c.count) / whole}%` }} /></span>
        </Link>
      ))}
      {list.length > shown.length && <p className="muted small">and {plural(list.length - shown.length, "more", "more")} with {plural(list.slice(8).reduce((s, c) => s + c.count, 0), "device")}</p>}
    </div>
  );
}
