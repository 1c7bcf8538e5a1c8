import { useQuery } from "@connectrpc/connect-query";
import { useState } from "react";
import { type Device, DeviceState } from "../../gen/skein/fleet/v1/fleet_pb";
import { ReleaseService } from "../../gen/skein/release/v1/release_pb";
import { noteDevice } from "../../lib/fleet";
import { generation } from "../../lib/device";
import { plural } from "../../lib/format";
import { useMay } from "../../lib/session";
import { fleetClient } from "../../lib/transport";
import { Banner } from "../../ui/basics";
import { Dialog, ReasonField } from "../../ui/Dialog";
import { Icon } from "../../ui/Icon";
import { toast } from "../../ui/toast";

type Action = "approve" | "revoke" | "label" | "assign" | "confirm";

export function DeviceActions({ device: d }: { device: Device }) {
  const [open, setOpen] = useState<Action>();
  const may = useMay("operator");
  const why = may ? undefined : "Your role may look only; ask an admin for the role operator";
  const close = () => setOpen(undefined);
  return (
    <div className="actions">
      {d.state === DeviceState.PENDING && <button type="button" className="btn primary" disabled={!may} title={why} onClick={() => setOpen("approve")}><Icon name="check" />Approve</button>}
      {d.generationFromFuture && <button type="button" className="btn" disabled={!may} title={why} onClick={() => setOpen("confirm")}><Icon name="check" />Confirm generation</button>}
      <button type="button" className="btn" disabled={!may} title={why} onClick={() => setOpen("label")}><Icon name="tag" />Edit labels</button>
      {d.state !== DeviceState.REVOKED && (
        <>
          <button type="button" className="btn" disabled={!may} title={why} onClick={() => setOpen("assign")}><Icon name="release" />Set release</button>
          <button type="button" className="btn danger" disabled={!may} title={why} onClick={() => setOpen("revoke")}><Icon name="ban" />Revoke</button>
        </>
      )}
      {open === "approve" && <Approve device={d} onClose={close} />}
      {open === "revoke" && <Revoke device={d} onClose={close} />}
      {open === "label" && <Labels device={d} onClose={close} />}
      {open === "assign" && <Assign device={d} onClose={close} />}
      {open === "confirm" && <Confirm device={d} onClose={close} />}
    </div>
  );
}

interface Props {
  device: Device;
  onClose: () => void;
}

function Approve({ device: d, onClose }: Props) {
  return (
    <Dialog title={`Approve ${d.name || d.id}?`} action="Approve" onClose={onClose} onSubmit={async () => {
      noteDevice((await fleetClient.approveDevice({ device: d.id })).device);
      toast("ok", `${d.name || d.id} is approved; it gets its certificate when it asks again`);
    }}>
      <p>It gets a certificate and joins the fleet. Check that the serial is the one on the box.</p>
      <dl className="facts"><dt>Serial</dt><dd>{d.serial || "none given"}</dd><dt>Hardware</dt><dd>{d.hardware || "none given"}</dd><dt>Target</dt><dd className="mono small">{d.target || "none given"}</dd></dl>
    </Dialog>
  );
}

function Revoke({ device: d, onClose }: Props) {
  const [typed, setTyped] = useState("");
  const [reason, setReason] = useState("");
  const name = d.name || d.id;
  return (
    <Dialog title={`Revoke ${name}?`} action="Revoke for good" danger disabled={typed !== name || reason.trim() === ""} onClose={onClose} onSubmit={async () => {
      const r = await fleetClient.revokeDevice({ device: d.id, reason: reason.trim() });
      noteDevice(r.device);
      toast("ok", `${name} is revoked; ${r.sessionEnded ? "its session was ended" : "it was not connected"}`);
    }}>
      <p>Its certificates are refused from now on and its session ends. It keeps serving what it runs, without updates, until it is enrolled anew. This cannot be undone.</p>
      <ReasonField value={reason} onChange={setReason} required />
      <div className="field">
        <label htmlFor="confirm-name">Type <code>{name}</code> to confirm</label>
        <input id="confirm-name" className="input" autoComplete="off" spellCheck={false} value={typed} onChange={(e) => setTyped(e.target.value)} />
      </div>
    </Dialog>
  );
}

interface Row {
  key: string;
  value: string;
}

const labelKey = /^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$/;

function Labels({ device: d, onClose }: Props) {
  const [name, setName] = useState(d.name);
  const [rows, setRows] = useState<Row[]>(() => Object.entries(d.labels).sort(([a], [b]) => a.localeCompare(b)).map(([key, value]) => ({ key, value })));
  const change = (i: number, part: Partial<Row>) => setRows(rows.map((r, k) => (k === i ? { ...r, ...part } : r)));
  const filled = rows.filter((r) => r.key.trim() !== "");
  const bad = filled.find((r) => !labelKey.test(r.key.trim()));
  const twice = filled.find((r, i) => filled.findIndex((o) => o.key.trim() === r.key.trim()) !== i);
  const wanted = new Map(filled.map((r) => [r.key.trim(), r.value.trim()]));
  const set = Object.fromEntries([...wanted].filter(([k, v]) => d.labels[k] !== v));
  const remove = Object.keys(d.labels).filter((k) => !wanted.has(k));
  const renamed = name.trim() !== "" && name.trim() !== d.name ? name.trim() : "";
  const changes = Object.keys(set).length + remove.length + (renamed ? 1 : 0);
  return (
    <Dialog title={`Name and labels of ${d.name || d.id}`} action={changes > 0 ? `Save ${plural(changes, "change")}` : "Save"} disabled={changes === 0 || bad !== undefined || twice !== undefined} onClose={onClose} onSubmit={async () => {
      noteDevice((await fleetClient.labelDevice({ device: d.id, set, remove, name: renamed })).device);
      toast("ok", `Saved ${plural(changes, "change")}`);
    }}>
      <div className="field"><label htmlFor="device-name">Name</label><input id="device-name" className="input" value={name} onChange={(e) => setName(e.target.value)} /></div>
      <div className="field">
        <span className="label">Labels</span>
        {rows.map((r, i) => (
          <div className="row" key={i}>
            <input className="input" aria-label={`Key of label ${i + 1}`} placeholder="site" value={r.key} onChange={(e) => change(i, { key: e.target.value })} />
            <span aria-hidden="true">=</span>
            <input className="input" aria-label={`Value of label ${i + 1}`} placeholder="lyon" value={r.value} onChange={(e) => change(i, { value: e.target.value })} />
            <button type="button" className="btn ghost icon-only" aria-label={`Remove label ${r.key || i + 1}`} onClick={() => setRows(rows.filter((_, k) => k !== i))}><Icon name="cross" /></button>
          </div>
        ))}
        <span><button type="button" className="btn small" onClick={() => setRows([...rows, { key: "", value: "" }])}><Icon name="plus" />Add a label</button></span>
        <span className="hint">{bad ? `“${bad.key}” is not a label key: use letters, digits, and . _ - / inside.` : twice ? `“${twice.key}” is there twice.` : "Rollouts and parameters select devices by labels; a new site brings that site’s parameters."}</span>
      </div>
    </Dialog>
  );
}

function Assign({ device: d, onClose }: Props) {
  const releases = useQuery(ReleaseService.method.listReleases, {});
  const [release, setRelease] = useState(d.desiredRelease);
  return (
    <Dialog title={`Set the release of ${d.name || d.id}`} action="Set release" disabled={release === d.desiredRelease} onClose={onClose} onSubmit={async () => {
      noteDevice((await fleetClient.assignRelease({ device: d.id, release })).device);
      toast("ok", "The device has a new desired release");
    }}>
      <p>Outside any rollout: no wave, no gate. The device still proves the release on itself before it serves.</p>
      {releases.error && <Banner tone="bad">The releases could not be loaded: {releases.error.rawMessage}</Banner>}
      <div className="field">
        <label htmlFor="assign">Release</label>
        <select id="assign" className="input" value={release} onChange={(e) => setRelease(e.target.value)}>
          <option value="">none</option>
          {(releases.data?.releases ?? []).map((r) => <option key={r.digest} value={r.digest}>{r.name}@{r.version}</option>)}
        </select>
      </div>
    </Dialog>
  );
}

function Confirm({ device: d, onClose }: Props) {
  return (
    <Dialog title="Confirm the generation?" action="Confirm" onClose={onClose} onSubmit={async () => {
      noteDevice((await fleetClient.confirmGeneration({ device: d.id })).device);
      toast("ok", "Confirmed; commands go to the device again");
    }}>
      <p>The device holds generation {generation(d.heldGeneration)}, newer than the {generation(d.desiredGeneration)} of this control plane. That happens after a restore from an old backup, or when somebody else commands the device. Confirm only if you know which.</p>
    </Dialog>
  );
}
