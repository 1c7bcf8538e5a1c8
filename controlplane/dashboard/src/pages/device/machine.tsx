import type { AgentSlots, BootChain, BootFirmware, BootSlot, BootTrap, Device } from "../../gen/skein/fleet/v1/fleet_pb";
import { plural } from "../../lib/format";
import { Badge, Banner, Digest, Panel } from "../../ui/basics";
import { Icon } from "../../ui/Icon";

const letter = (slot: number) => String.fromCharCode(65 + slot);
const redundancyWords: Record<string, string> = { armed: "healthy", "not-armed": "warning" };
const capsuleWords: Record<string, string> = { applied: "passed", pending: "pending", failed: "failed" };
const slotWords: Record<string, string> = { normal: "healthy", unbootable: "failed" };

/** What the machine says of its start, with what would make an update fail. */
export function Boot({ device: d }: { device: Device }) {
  const b = d.bootChain;
  if (!b) return null;
  return (
    <Panel title="Boot chain" flush tail={<span className="muted small">{b.driver}{b.version && ` ${b.version}`}</span>}>
      <div className="body stack-gap">
        {b.traps.map((t) => <Trap key={t.name} trap={t} />)}
        <dl className="facts">
          <dt>Redundancy</dt><dd><Badge word={redundancyWords[b.redundancy] ?? ""}>{b.redundancy === "not-armed" ? "not armed" : b.redundancy || "unknown"}</Badge></dd>
          <dt>Capsule</dt><dd><Badge word={capsuleWords[b.capsule] ?? ""}>{b.capsule || "unknown"}</Badge></dd>
        </dl>
      </div>
      <Slots chain={b} />
      {b.esrt.length > 0 && <div className="body"><details><summary>Firmware table, {plural(b.esrt.length, "entry", "entries")}</summary><Table entries={b.esrt} /></details></div>}
    </Panel>
  );
}

function Trap({ trap: t }: { trap: BootTrap }) {
  return (
    <Banner tone="warn">
      <strong>{t.name}</strong>
      <span>An update of the operating system would fail: {t.problem}</span>
      <span><span className="muted">Repair: </span>{code(t.repair)}</span>
    </Banner>
  );
}

/** Text with its commands, which stand in backticks. */
function code(text: string) {
  return text.split("`").map((part, i) => (i % 2 === 1 ? <code key={i}>{part}</code> : part));
}

function Slots({ chain: b }: { chain: BootChain }) {
  const rows = [...b.rootfs.map((s) => ({ s, what: "Rootfs" })), ...b.firmware.map((s) => ({ s, what: "Firmware" }))];
  if (rows.length === 0) return <p className="body muted">It tells of no slots.</p>;
  return (
    <div className="scroll-x" tabIndex={0} role="region" aria-label="Boot slots"><table className="grid">
      <thead><tr><th>Slot</th><th>Status</th><th className="right">Retries</th><th>Use</th></tr></thead>
      <tbody>{rows.map(({ s, what }) => (
        <tr key={what + s.number}>
          <td className="nowrap">{what} <strong>{letter(s.number)}</strong></td>
          <td><Badge word={slotWords[s.status] ?? ""}>{s.status || "unknown"}</Badge></td>
          <td className="right num">{s.retries < 0 ? <span className="muted"><span aria-hidden="true">–</span><span className="sr">not told</span></span> : <span className={s.retries === 0 ? "t-bad" : ""}>{s.retries}</span>}</td>
          <td>{use(s)}</td>
        </tr>
      ))}</tbody>
    </table></div>
  );
}

function use(s: BootSlot) {
  if (s.current) return s.active ? "runs" : "runs, not at the next start";
  return s.active ? <span className="t-warn">starts next</span> : <span className="muted">spare</span>;
}

function Table({ entries }: { entries: BootFirmware[] }) {
  return (
    <div className="scroll-x" tabIndex={0} role="region" aria-label="Firmware table"><table className="grid">
      <thead><tr><th>Class</th><th className="right">Version</th><th className="right">Lowest</th><th>Last attempt</th></tr></thead>
      <tbody>{entries.map((e) => (
        <tr key={e.class}>
          <td className="mono small" title={e.class}>{e.class.slice(0, 8)}</td>
          <td className="right num">{String(e.version)}</td>
          <td className="right num">{String(e.lowestSupported)}</td>
          <td>{e.lastAttemptVersion === 0n ? <span className="muted">none</span> : e.lastAttemptStatus === 0n ? `${e.lastAttemptVersion}, done` : <span className="t-bad">{String(e.lastAttemptVersion)}, status {String(e.lastAttemptStatus)}</span>}</td>
        </tr>
      ))}</tbody>
    </table></div>
  );
}

const slotNames: Record<string, string> = { factory: "the one it came with", a: "slot A", b: "slot B" };
const slotName = (s: string) => slotNames[s] ?? s;

/** Which binary of the agent runs, and how a new one fares. */
export function Agent({ device: d }: { device: Device }) {
  const a = d.agentSlots;
  if (!a) return null;
  return (
    <Panel title="Agent" tail={<span className="muted small">{d.agentVersion || "unknown version"}</span>}>
      <div className="stack-gap">
        {a.failure && <Banner tone="bad"><strong>The last new binary did not succeed</strong><span>{a.failure}</span></Banner>}
        {a.trial && <Trial slots={a} />}
        <dl className="facts">
          <dt>Runs</dt><dd>{a.active ? slotName(a.active) : <span className="muted">started by no supervisor, so it does not update itself</span>}</dd>
          {a.previous && <><dt>Goes back to</dt><dd>{slotName(a.previous)}</dd></>}
          <dt>Binary</dt><dd>{a.digest ? <Digest value={a.digest} what="digest of the agent's binary" /> : <span className="muted">not from a release</span>}</dd>
        </dl>
      </div>
    </Panel>
  );
}

function Trial({ slots: a }: { slots: AgentSlots }) {
  return (
    <Banner tone="info" icon={a.checkedIn ? "check" : "clock"}>
      <strong>A new binary is on trial in {slotName(a.trial)}</strong>
      <span>{a.checkedIn ? "It has shown itself to the control plane." : `It has to show itself; ${plural(a.triesLeft, "try", "tries")} left before the one before comes back.`}</span>
    </Banner>
  );
}

/** What it may do beyond running its release. */
export function Capabilities({ device: d }: { device: Device }) {
  return (
    <>
      <dt>Capabilities</dt>
      <dd className="row wrap">{d.capabilities.length === 0 ? <span className="muted">none granted</span> : d.capabilities.map((c) => <span key={c} className="chip">{c}</span>)}</dd>
      {(d.serves.length > 0 || d.capabilities.includes("cache")) && (
        <>
          <dt>Serves</dt>
          <dd>{d.serves.length === 0 ? <span className="row t-warn"><Icon name="warn" />nothing: it has told no address yet</span> : <ul>{d.serves.map((s) => <li key={s} className="mono small">{s}</li>)}</ul>}</dd>
        </>
      )}
    </>
  );
}
