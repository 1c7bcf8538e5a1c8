import { useQuery } from "@connectrpc/connect-query";
import { Link, useParams, useSearch } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { type Device, FleetService, type Reading } from "../gen/skein/fleet/v1/fleet_pb";
import { converged, generation, hardwareLabel, stateName, updateName } from "../lib/device";
import { noteDevice } from "../lib/fleet";
import { ms, plural, releaseLabel, sentence, shortDigest, targetLabel } from "../lib/format";
import { useTitle } from "../lib/hooks";
import { keepStream, type StreamState } from "../lib/stream";
import { fleetClient, isNotFound } from "../lib/transport";
import { Ago, At, Badge, Banner, Bone, Bones, Copy, Digest, Empty, Failure, iconOf, Panel, toneOf } from "../ui/basics";
import { Icon } from "../ui/Icon";
import { DeviceActions } from "./device/actions";
import { DeviceCharts } from "./device/charts";
import { Fetched } from "./device/fetched";
import { Journal } from "./device/journal";
import { Agent, Boot, Capabilities } from "./device/machine";
import { Power } from "./device/power";
import { Transfer } from "./device/transfer";

const noReadings: Reading[] = [];

interface Watched {
  device: Device | undefined;
  readings: Reading[];
  stream: StreamState;
  error: unknown;
}

/** The device as the stream gives it: now, and after each change. */
function useWatchedDevice(ref: string): Watched {
  const [w, setW] = useState<Watched>({ device: undefined, readings: noReadings, stream: "connecting", error: undefined });
  useEffect(() => {
    setW({ device: undefined, readings: noReadings, stream: "connecting", error: undefined });
    return keepStream({
      open: (signal) => fleetClient.watchDevice({ device: ref }, { signal }),
      onMessage: (m) => {
        setW((old) => ({ ...old, device: m.device ?? old.device, readings: m.readings.length > 0 ? m.readings : old.readings }));
        noteDevice(m.device);
      },
      onState: (stream, error) => setW((old) => ({ ...old, stream, error })),
    });
  }, [ref]);
  return w;
}

export function DevicePage() {
  const { device: ref } = useParams({ from: "/shell/devices/$device" });
  const { range = "1h" } = useSearch({ from: "/shell/devices/$device" });
  const { device: d, readings, error, stream } = useWatchedDevice(ref);
  useTitle(d?.name || "Device");
  const change = d ? `${d.phase}/${d.step}/${d.state}/${generation(d.desiredGeneration)}/${generation(d.heldGeneration)}/${d.failureClass}/${d.journal.length}` : "";

  if (!d) {
    if (stream === "refused" && error) {
      return isNotFound(error) ? (
        <div className="panel"><Empty title="There is no such device" icon="search"><p>No device has the id or name “{ref}”.</p><Link to="/devices" className="btn">All devices</Link></Empty></div>
      ) : (
        <Failure error={error} what="The device" />
      );
    }
    return <LoadingDevice />;
  }
  return (
    <>
      <Head device={d} />
      {stream === "retrying" && <Banner tone="warn">The live connection is interrupted; what is shown may be old. Connecting again…</Banner>}
      <Explain device={d} change={change} />
      <div className="cols">
        <div className="c8 stack-gap">
          <Desired device={d} />
          <Journal device={d} />
          <Boot device={d} />
          <Agent device={d} />
        </div>
        <div className="c4 stack-gap">
          <Conditions device={d} />
          <Transfer device={d} />
          <Power device={d} />
          <Fetched device={d} />
          <Facts device={d} />
        </div>
      </div>
      <DeviceCharts device={d.id} range={range} readings={readings} />
      <Events device={d.id} change={change} />
    </>
  );
}

function LoadingDevice() {
  return (
    <>
      <div className="head"><div className="stack" role="status" aria-label="Loading the device"><Bone w={90} h={14} /><Bone w={240} h={28} /><Bone w={320} h={16} /></div></div>
      <Bone h={46} />
      <div className="cols"><div className="c8"><Bone h={330} /></div><div className="c4"><Bone h={330} /></div></div>
    </>
  );
}

function Head({ device: d }: { device: Device }) {
  return (
    <div className="head">
      <div className="stack tight">
        <nav className="crumbs" aria-label="Path"><Link to="/devices">Devices</Link><span aria-hidden="true">/</span><span className="clip">{d.labels.site || d.hardware || "device"}</span></nav>
        <div className="row wrap"><h1>{d.name || d.id}</h1><Badge word={stateName(d)} /><Badge word={updateName(d)} /></div>
        <p className="sub">{[hardwareLabel(d.hardware), targetLabel(d.target)].filter(Boolean).join(" · ")}<span className="nowrap"> · seen <Ago at={d.lastSeen} /></span></p>
      </div>
      <DeviceActions device={d} />
    </div>
  );
}

/** Asks again when the device changed, not at the first showing. */
function useRefetchOn(change: string, refetch: () => unknown): void {
  const seen = useRef(change);
  useEffect(() => {
    if (seen.current === change) return;
    seen.current = change;
    void refetch();
  }, [change, refetch]);
}

function Explain({ device: d, change }: { device: Device; change: string }) {
  const explain = useQuery(FleetService.method.explainDevice, { device: d.id }, { refetchInterval: 15_000 });
  useRefetchOn(change, explain.refetch);
  if (explain.isPending) return <Bone h={46} />;
  if (explain.error && !explain.data) return <Banner tone="warn">The explanation could not be loaded: {explain.error.rawMessage}</Banner>;
  const tone = updateName(d) === "failed" ? "bad" : stateName(d) === "pending" || stateName(d) === "revoked" ? "warn" : ["converging", "waiting"].includes(updateName(d)) ? "info" : "ok";
  return (
    <Banner tone={tone}>
      <strong>{sentence(explain.data?.summary || "Nothing to explain.")}</strong>
      {(explain.data?.reasons.length ?? 0) > 0 && <ul>{explain.data?.reasons.map((r) => <li key={r}>{r}</li>)}</ul>}
    </Banner>
  );
}

function Desired({ device: d }: { device: Device }) {
  const sameRelease = d.desiredRelease === d.runningRelease;
  const sameParameters = d.desiredParametersDigest === d.reportedParametersDigest;
  const sameGeneration = generation(d.desiredGeneration) === generation(d.heldGeneration);
  const differs = (same: boolean) => (same ? "" : "differs");
  return (
    <Panel title="Desired against reported" flush tail={converged(d) && sameParameters ? <Badge word="settled">the same</Badge> : <Badge word="converging">different</Badge>}>
      <div className="pair" role="table" aria-label="Desired against reported">
        <div className="contents" role="row"><span className="th" role="columnheader"><span className="sr">What</span></span><span className="th" role="columnheader">Desired</span><span className="th" role="columnheader">Reported</span></div>
        <div className="contents" role="row">
          <span className="th" role="rowheader">Release</span>
          <span role="cell"><ReleaseLink name={d.desiredReleaseName} digest={d.desiredRelease} /></span>
          <span role="cell" className={differs(sameRelease)}><ReleaseLink name={d.runningReleaseName} digest={d.runningRelease} />{!sameRelease && <span className="sr"> differs from the desired one</span>}</span>
        </div>
        <div className="contents" role="row">
          <span className="th" role="rowheader">Generation</span>
          <span role="cell" className="num" title="epoch.counter">{generation(d.desiredGeneration)}</span>
          <span role="cell" className={`num ${differs(sameGeneration)}`} title="epoch.counter">{generation(d.heldGeneration)}</span>
        </div>
        <div className="contents" role="row">
          <span className="th" role="rowheader">Parameters</span>
          <span role="cell"><Digest value={d.desiredParametersDigest} what="digest of the desired parameters" /></span>
          <span role="cell" className={differs(sameParameters)}><Digest value={d.reportedParametersDigest} what="digest of the reported parameters" /></span>
        </div>
        <div className="contents" role="row">
          <span className="th" role="rowheader">Rollout</span>
          <span role="cell">{d.rollout ? <Link to="/rollouts/$rollout" params={{ rollout: d.rollout }}>{d.rollout.slice(0, 12)}</Link> : <span className="muted">none holds it</span>}</span>
          <span role="cell">{d.phase || "unknown"}{d.step ? `, step ${d.step}` : ""}</span>
        </div>
      </div>
      {d.failureClass && (
        <div className="body failure"><Banner tone="bad"><strong>Last update failed: {d.failureClass}</strong><span>{d.failure || "The device gave no cause."}</span></Banner></div>
      )}
    </Panel>
  );
}

function ReleaseLink({ name, digest }: { name: string; digest: string }) {
  if (!digest && !name) return <span className="muted">none</span>;
  return <Link to="/releases/$release" params={{ release: digest || name }} title={digest}>{releaseLabel(name, digest)}</Link>;
}

function Conditions({ device: d }: { device: Device }) {
  return (
    <Panel title="Conditions" tail={d.conditions.length > 0 && <span className="muted small num">{d.conditions.length}</span>}>
      {d.generationFromFuture && <Banner tone="bad"><strong>Generation from the future</strong><span>The device holds a generation that this control plane never gave. Nothing destructive is sent until an operator confirms it.</span></Banner>}
      {d.clockDoubtful && <Banner tone="warn">The clock of the device is doubtful: it has not learned a trusted time since it started.</Banner>}
      {d.conditions.length === 0 && !d.generationFromFuture && !d.clockDoubtful && <p className="row muted"><Icon name="check" className="t-ok" />None reported</p>}
      <ul className="stack">
        {d.conditions.map((c) => (
          <li key={c.name} className="row top">
            <Icon name={iconOf(c.severity)} className={`t-${toneOf(c.severity)}`} />
            <div className="grow">
              <div className="row spread"><strong>{c.name}</strong><span className="small muted"><Ago at={c.since} empty="" /></span></div>
              <p className="small"><span className="muted">{c.severity}:</span> {c.message}</p>
            </div>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function Facts({ device: d }: { device: Device }) {
  const expires = ms(d.certificateNotAfter);
  const soon = expires !== undefined && expires - Date.now() < 7 * 86_400_000;
  return (
    <Panel title="Identity">
      <dl className="facts">
        <dt>Id</dt><dd><Copy text={d.id} what="device id" /></dd>
        <dt>Serial</dt><dd>{d.serial || <span className="muted">unknown</span>}</dd>
        <dt>Hardware</dt><dd>{d.hardware || <span className="muted">unknown</span>}</dd>
        <dt>Target</dt><dd className="mono small">{d.target || "unknown"}</dd>
        <dt>Labels</dt>
        <dd className="row wrap">{Object.keys(d.labels).length === 0 ? <span className="muted">none</span> : Object.entries(d.labels).sort(([a], [b]) => a.localeCompare(b)).map(([k, v]) => <span key={k} className="chip">{k}={v}</span>)}</dd>
        <Capabilities device={d} />
        <dt>Agent</dt><dd>{d.agentVersion || <span className="muted">unknown</span>}</dd>
        <dt>Enrolled</dt><dd><At at={d.enrolled} /></dd>
        <dt>Certificate</dt><dd>{soon && <Icon name="warn" className="t-warn inline" />}until <At at={d.certificateNotAfter} /></dd>
        <dt>Boot</dt><dd className="mono small">{d.bootId ? shortDigest(d.bootId) : "–"}</dd>
      </dl>
    </Panel>
  );
}

function Events({ device, change }: { device: string; change: string }) {
  const events = useQuery(FleetService.method.listDeviceEvents, { device, limit: 100 }, { refetchInterval: 10_000 });
  useRefetchOn(change, events.refetch);
  const [shown, setShown] = useState(20);
  const list = events.data?.events ?? [];
  return (
    <Panel title="Events" flush tail={list.length > 0 && <span className="muted small">{plural(list.length, "event")}, newest first</span>}>
      {events.isPending ? (
        <div className="body"><Bones rows={4} /></div>
      ) : events.error && !events.data ? (
        <Failure error={events.error} what="The events" retry={() => void events.refetch()} />
      ) : list.length === 0 ? (
        <p className="body muted">The device has reported no event yet.</p>
      ) : (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="Events">
          <table className="grid">
            <thead><tr><th>Time on the device</th><th>Kind</th><th>Step</th><th className="wide">Message</th><th>Release</th></tr></thead>
            <tbody>
              {list.slice(0, shown).map((e, i) => (
                <tr key={`${ms(e.time)}-${i}`}>
                  <td className="nowrap"><At at={e.time} /></td>
                  <td className="nowrap">{e.attack ? <Badge word="denied">{e.kind}: {e.attack}</Badge> : e.kind}</td>
                  <td>{e.step || <span className="muted">–</span>}</td>
                  <td className="wide">{e.message}</td>
                  <td className="mono small">{e.release ? shortDigest(e.release) : <span className="muted">–</span>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {list.length > shown && <div className="body"><button type="button" className="btn small" onClick={() => setShown(list.length)}>Show {list.length - shown} older</button></div>}
    </Panel>
  );
}
