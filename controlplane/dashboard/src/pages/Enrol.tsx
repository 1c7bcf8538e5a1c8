import { useQuery } from "@connectrpc/connect-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { type CreatedToken, FleetService, type Token } from "../gen/skein/fleet/v1/fleet_pb";
import { duration, ms, plural } from "../lib/format";
import { useNow, useTitle } from "../lib/hooks";
import { useMay } from "../lib/session";
import { parseLabels } from "../lib/spec";
import { fleetClient } from "../lib/transport";
import { Ago, Badge, Banner, Bones, copyText, Empty, Failure } from "../ui/basics";
import { Dialog } from "../ui/Dialog";
import { Icon } from "../ui/Icon";
import { toast } from "../ui/toast";

export function Enrol() {
  useTitle("Enrol devices");
  const tokens = useQuery(FleetService.method.listTokens, {}, { refetchInterval: 10_000 });
  const [creating, setCreating] = useState(false);
  const [created, setCreated] = useState<CreatedToken[]>([]);
  const [revoking, setRevoking] = useState<Token>();
  const may = useMay("operator");
  const list = tokens.data?.tokens ?? [];
  return (
    <>
      <div className="head">
        <div className="stack tight">
          <nav className="crumbs" aria-label="Path"><Link to="/devices">Devices</Link><span aria-hidden="true">/</span><span>enrol</span></nav>
          <h1>Enrol devices</h1>
          <p className="sub">A claim token lets a device in. It carries the hash of this server’s CA key, so the device knows whom it talks to.</p>
        </div>
        <div className="actions"><button type="button" className="btn primary" disabled={!may} onClick={() => setCreating(true)}><Icon name="plus" />New claim token</button></div>
      </div>
      {created.length > 0 && (
        <Banner tone="ok" icon="key">
          <strong>Copy it now: it is shown once.</strong>
          {created.map((c) => <pre key={c.token?.id} className="json claim">{c.claim}</pre>)}
          <span className="row wrap"><button type="button" className="btn small" onClick={() => void copyText(created.map((c) => c.claim).join("\n"))}><Icon name="copy" />Copy</button><button type="button" className="btn small ghost" onClick={() => setCreated([])}>Done</button></span>
        </Banner>
      )}
      <div className="panel">
        {tokens.isPending ? <div className="pad"><Bones rows={5} h={26} /></div> : tokens.error && !tokens.data ? <Failure error={tokens.error} what="The tokens" retry={() => void tokens.refetch()} /> : list.length === 0 ? (
          <Empty title="No claim tokens" icon="key"><p>Make one, and give it to the agent on the device at its first start.</p></Empty>
        ) : (
          <div className="scroll-x" tabIndex={0} role="region" aria-label="Claim tokens">
            <table className="grid">
              <thead><tr><th>Token</th><th>State</th><th className="right">Used</th><th>Expires</th><th>Labels</th><th>Approval</th><th><span className="sr">Actions</span></th></tr></thead>
              <tbody>{list.map((t) => <Row key={t.id} token={t} may={may} onRevoke={() => setRevoking(t)} />)}</tbody>
            </table>
          </div>
        )}
      </div>
      {creating && <Create onClose={() => setCreating(false)} onCreated={(c) => { setCreated(c); void tokens.refetch(); }} />}
      {revoking && (
        <Dialog title="Revoke the token?" action="Revoke" danger onClose={() => setRevoking(undefined)} onSubmit={async () => {
          await fleetClient.revokeToken({ id: revoking.id });
          await tokens.refetch();
          toast("ok", "The token is revoked");
        }}>
          <p>No further device can use it. The {plural(revoking.used, "device")} that did stay enrolled.</p>
        </Dialog>
      )}
    </>
  );
}

function Row({ token: t, may, onRevoke }: { token: Token; may: boolean; onRevoke: () => void }) {
  const now = useNow();
  const expires = ms(t.expires);
  const state = t.revoked ? "revoked" : expires !== undefined && expires < now ? "expired" : t.used >= t.uses ? "used" : "active";
  return (
    <tr>
      <td className="mono small">{t.id}{t.createdBy && <p className="muted">by {t.createdBy}</p>}</td>
      <td><Badge word={state} /></td>
      <td className="right num nowrap">{t.used} of {t.uses}</td>
      <td><Ago at={t.expires} /></td>
      <td><span className="row wrap">{Object.entries(t.labels).sort(([a], [b]) => a.localeCompare(b)).map(([k, v]) => <span key={k} className="chip">{k}={v}</span>)}{t.serials.length > 0 && <span className="small muted" title={t.serials.join(", ")}>{plural(t.serials.length, "serial")}</span>}</span></td>
      <td>{t.autoApprove ? "at once" : "by a person"}</td>
      <td className="right">{state === "active" && <button type="button" className="btn small danger" disabled={!may} aria-label={`Revoke token ${t.id}`} onClick={onRevoke}>Revoke</button>}</td>
    </tr>
  );
}

function Create({ onClose, onCreated }: { onClose: () => void; onCreated: (c: CreatedToken[]) => void }) {
  const [uses, setUses] = useState(1);
  const [hours, setHours] = useState(24);
  const [labels, setLabels] = useState("");
  const [serials, setSerials] = useState("");
  const [auto, setAuto] = useState(false);
  const parsed = parseLabels(labels);
  const list = serials.split(/[\s,;]+/).filter(Boolean);
  const unbounded = auto && list.length === 0 && uses > 1;
  return (
    <Dialog title="New claim token" action="Make token" disabled={typeof parsed === "string" || unbounded} onClose={onClose} onSubmit={async () => {
      if (typeof parsed === "string") return;
      const r = await fleetClient.createTokens({ count: 1, uses, ttlSeconds: BigInt(hours * 3600), labels: parsed, serials: list, autoApprove: auto });
      onCreated(r.tokens);
    }}>
      <div className="form">
        <div className="pairs">
          <div className="field"><label htmlFor="uses">Devices it may enrol</label><input id="uses" className="input num" type="number" min={1} max={100_000} value={uses} onChange={(e) => setUses(Math.max(1, Math.round(Number(e.target.value) || 1)))} /></div>
          <div className="field"><label htmlFor="hours">Valid for, hours</label><input id="hours" className="input num" type="number" min={1} max={8760} value={hours} onChange={(e) => setHours(Math.max(1, Math.round(Number(e.target.value) || 1)))} /><span className="hint">{duration(hours * 3_600_000)}</span></div>
        </div>
        <div className="field"><label htmlFor="token-labels">Labels for the devices</label><input id="token-labels" className="input mono" placeholder="site=lyon, ring=early" value={labels} aria-invalid={typeof parsed === "string"} onChange={(e) => setLabels(e.target.value)} />{typeof parsed === "string" && <span className="hint t-bad">{parsed}</span>}</div>
        <div className="field"><label htmlFor="serials">Only these serials (optional)</label><textarea id="serials" className="input mono" value={serials} onChange={(e) => setSerials(e.target.value)} /><span className="hint">One on each line. {list.length > 0 ? `${plural(list.length, "serial")}.` : ""}</span></div>
        <label className="check"><input type="checkbox" checked={auto} onChange={(e) => setAuto(e.target.checked)} /><span>Approve at once<br /><span className="hint small muted">{unbounded ? "Needs a list of serials, or a single use." : "Otherwise a person approves each device on its page."}</span></span></label>
      </div>
    </Dialog>
  );
}
