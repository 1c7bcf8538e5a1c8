import type { JsonObject } from "@bufbuild/protobuf";
import { useQuery } from "@connectrpc/connect-query";
import { useQuery as useAnyQuery } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { type FormEvent, type ReactNode, useMemo, useState } from "react";
import { type Release, ReleaseService } from "../gen/skein/release/v1/release_pb";
import type { PlanRolloutResponse } from "../gen/skein/rollout/v1/rollout_pb";
import { bytes, count, plural, targetLabel } from "../lib/format";
import { useDebounced, useTitle } from "../lib/hooks";
import { useMay } from "../lib/session";
import { buildSpec, defaultForm, type RolloutForm } from "../lib/spec";
import { explainError, rolloutClient } from "../lib/transport";
import { Banner, Bones, Empty, Failure, Panel } from "../ui/basics";
import { Icon } from "../ui/Icon";
import { toast } from "../ui/toast";

export function StartRollout() {
  useTitle("New rollout");
  const { release: chosen } = useSearch({ from: "/shell/rollouts/new" });
  const releases = useQuery(ReleaseService.method.listReleases, {});
  const list = releases.data?.releases ?? [];
  const release = list.find((r) => r.digest === chosen || `${r.name}@${r.version}` === chosen);
  return (
    <>
      <div className="head">
        <div className="stack tight">
          <nav className="crumbs" aria-label="Path"><Link to="/rollouts">Rollouts</Link><span aria-hidden="true">/</span><span>new</span></nav>
          <h1>New rollout</h1>
          <p className="sub">Waves, each judged before the next begins. Nothing is sent before you start it.</p>
        </div>
      </div>
      {releases.isPending ? <div className="panel pad"><Bones rows={5} /></div> : releases.error && !releases.data ? <Failure error={releases.error} what="The releases" retry={() => void releases.refetch()} /> : list.length === 0 ? (
        <div className="panel"><Empty title="No releases yet" icon="release"><p>Push a model and make a release of it first: <code>skein release create</code>.</p></Empty></div>
      ) : (
        <Form key={release?.digest ?? ""} release={release ?? (chosen === undefined ? list.find((r) => !r.pending) : undefined)} releases={list} />
      )}
    </>
  );
}

function Form({ release, releases }: { release: Release | undefined; releases: Release[] }) {
  const navigate = useNavigate({ from: "/rollouts/new" });
  const may = useMay("operator");
  const [name, setName] = useState("");
  const [form, setForm] = useState<RolloutForm>(defaultForm);
  const [custom, setCustom] = useState<string>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const set = (part: Partial<RolloutForm>) => setForm({ ...form, ...part });

  const built = useMemo((): JsonObject | string => {
    if (!release) return "Choose a release.";
    if (custom === undefined) return buildSpec(release.digest, form);
    try {
      const parsed: unknown = JSON.parse(custom);
      return typeof parsed === "object" && parsed !== null && !Array.isArray(parsed) ? (parsed as JsonObject) : "The specification must be a JSON object.";
    } catch (e) {
      return `Not JSON: ${e instanceof Error ? e.message : "unreadable"}`;
    }
  }, [release, form, custom]);
  const text = useDebounced(typeof built === "string" ? "" : JSON.stringify(built), 350);
  const plan = useAnyQuery({
    queryKey: ["plan", text],
    enabled: text !== "",
    queryFn: ({ signal }) => rolloutClient.planRollout({ spec: JSON.parse(text) as JsonObject }, { signal }),
    placeholderData: (old) => old,
    retry: false,
    staleTime: 10_000,
  });
  const devices = plan.data?.waves.reduce((sum, w) => sum + w.devices, 0) ?? 0;
  const settled = typeof built !== "string" && text === JSON.stringify(built) && !plan.isFetching && plan.isSuccess;

  const submit = async (e: FormEvent) => {
    e.preventDefault();
    if (typeof built === "string" || busy) return;
    setBusy(true);
    setError(undefined);
    try {
      const r = await rolloutClient.startRollout({ spec: built, name: name.trim() });
      toast("ok", "The rollout has started");
      await navigate({ to: "/rollouts/$rollout", params: { rollout: r.rollout?.id ?? "" } });
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };

  return (
    <form className="cols" onSubmit={(e) => void submit(e)}>
      <div className="c7 stack-gap">
        <Panel title="What and where">
          <div className="form">
            <Field id="release" label="Release">
              <select id="release" className="input" value={release?.digest ?? ""} onChange={(e) => void navigate({ search: { release: e.target.value }, replace: true, resetScroll: false })}>
                {!release && <option value="">choose…</option>}
                {releases.map((r) => <option key={r.digest} value={r.digest} disabled={!!r.pending}>{r.name}@{r.version} ({bytes(r.bytes)}, {plural(r.targets.length, "target")}{r.pending && ", to be signed"})</option>)}
              </select>
            </Field>
            <Field id="name" label="Name" hint="Empty: the server chooses one."><input id="name" className="input" value={name} maxLength={80} placeholder={release ? `${release.name}-${release.version}` : ""} onChange={(e) => setName(e.target.value)} /></Field>
            {custom === undefined && <Field id="labels" label="Only devices with these labels" hint="For example site=lyon, ring=early. Empty: the whole fleet."><input id="labels" className="input mono" value={form.labels} spellCheck={false} placeholder="the whole fleet" onChange={(e) => set({ labels: e.target.value })} /></Field>}
          </div>
        </Panel>
        {custom === undefined ? (
          <Panel title="How" tail={<button type="button" className="btn small ghost" onClick={() => setCustom(typeof built === "string" ? "{}" : JSON.stringify(built, null, 2))}>Edit as JSON</button>}>
            <div className="form">
              <div className="pairs">
                <Num id="canary" label="Canary, devices of each target" min={1} max={100} value={form.canaryPerTarget} onChange={(v) => set({ canaryPerTarget: v })} />
                <Num id="quarter" label="Second wave, % of devices" hint="0: no second wave" min={0} max={99} value={form.quarterPct} onChange={(v) => set({ quarterPct: v })} />
                <Num id="soak" label="Watch a wave for, minutes" min={0} max={10_080} value={form.soakMinutes} onChange={(v) => set({ soakMinutes: v })} />
                <Num id="success" label="A wave passes at, % healthy" min={1} max={100} value={form.minSuccessPct} onChange={(v) => set({ minSuccessPct: v })} />
                <Num id="abort" label="Abort at, % failed" hint="Of the devices that tried, three or more" min={1} max={100} value={form.abortPct} onChange={(v) => set({ abortPct: v })} />
              </div>
              <label className="check"><input type="checkbox" checked={form.rollback} onChange={(e) => set({ rollback: e.target.checked })} /><span>When it aborts, take every device back to what it ran before</span></label>
              <label className="check"><input type="checkbox" checked={form.manual} onChange={(e) => set({ manual: e.target.checked })} /><span>A person approves each wave before the next one starts</span></label>
            </div>
          </Panel>
        ) : (
          <Panel title="Specification" tail={<button type="button" className="btn small ghost" onClick={() => setCustom(undefined)}>Back to the form</button>}>
            <div className="field">
              <label htmlFor="spec" className="sr">Specification as JSON</label>
              <textarea id="spec" className="input mono spec" spellCheck={false} value={custom} aria-invalid={typeof built === "string"} onChange={(e) => setCustom(e.target.value)} />
            </div>
          </Panel>
        )}
      </div>
      <div className="c5 stack-gap sticky">
        <Panel title="Plan" tail={plan.isFetching ? <span className="muted small" role="status">working it out…</span> : null}>
          {typeof built === "string" ? <Banner tone="warn">{built}</Banner> : plan.error ? <Banner tone="bad">{explainError(plan.error)}</Banner> : plan.data ? <Plan plan={plan.data} /> : <Bones rows={5} />}
        </Panel>
        {error !== undefined && <div role="alert"><Banner tone="bad">{explainError(error)}</Banner></div>}
        <button type="submit" className="btn primary" disabled={!may || busy || !settled || devices === 0} title={may ? undefined : "Your role may look only; ask an admin for the role operator"}>
          <Icon name="play" />
          {busy ? "Starting…" : settled && devices > 0 ? `Start on ${plural(devices, "device")}` : "Start"}
        </button>
        {settled && devices === 0 && <p className="small muted">No device would get the release, so there is nothing to start.</p>}
      </div>
    </form>
  );
}

function Plan({ plan: p }: { plan: PlanRolloutResponse }) {
  const total = p.waves.reduce((sum, w) => sum + w.devices, 0);
  return (
    <div className="stack-gap">
      <ol className="stack-gap">
        {p.waves.map((w, i) => (
          <li key={w.name} className="stack tight">
            <div className="row spread"><strong>{i + 1}. {w.name}</strong><span className="num">{plural(w.devices, "device")} · {bytes(w.bytes)}</span></div>
            <span className="strip thin" aria-hidden="true"><span className="f-accent" style={{ flex: `${w.devices} 1 0` }} /><span style={{ flex: `${Math.max(0, total - w.devices)} 1 0` }} /></span>
            <ul className="small muted">{Object.entries(w.byTarget).sort(([, a], [, b]) => b - a).map(([t, n]) => <li key={t} className="row spread" title={t}><span className="clip">{targetLabel(t)}</span><span className="num">{count(n)}</span></li>)}</ul>
          </li>
        ))}
      </ol>
      {p.waves.length === 0 && <p className="muted">No wave has a device.</p>}
      {p.unreachable.length > 0 && (
        <details>
          <summary>{plural(p.unreachable.length, "device")} can never get it</summary>
          <ul className="stack tight small">{p.unreachable.slice(0, 50).map((u) => <li key={u.device}><Link to="/devices/$device" params={{ device: u.device }}>{u.deviceName || u.device.slice(0, 8)}</Link>: {u.reason}</li>)}</ul>
        </details>
      )}
      {p.notes.length > 0 && <ul className="evidence">{p.notes.map((n) => <li key={n}><Icon name="info" />{n}</li>)}</ul>}
    </div>
  );
}

function Field({ id, label, hint, children }: { id: string; label: string; hint?: string; children: ReactNode }) {
  return <div className="field"><label htmlFor={id}>{label}</label>{children}{hint && <span className="hint">{hint}</span>}</div>;
}

function Num({ id, label, hint, min, max, value, onChange }: { id: string; label: string; hint?: string; min: number; max: number; value: number; onChange: (v: number) => void }) {
  return (
    <Field id={id} label={label} hint={hint}>
      <input id={id} className="input num" type="number" inputMode="numeric" min={min} max={max} step={1} value={value} onChange={(e) => onChange(Math.max(min, Math.min(max, Math.round(Number(e.target.value) || 0))))} />
    </Field>
  );
}
