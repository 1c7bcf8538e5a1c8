import type { Device } from "../../gen/skein/fleet/v1/fleet_pb";
import { bytes } from "../../lib/format";
import { Panel } from "../../ui/basics";

const ways: Record<string, string> = {
  peer: "a device at the same site",
  https: "HTTPS",
  mqtt: "the device link",
  child: "a mirror of the release",
};

/** What the last update took from the network, and by which way. */
export function Fetched({ device: d }: { device: Device }) {
  const total = d.sources.reduce((sum, s) => sum + Number(s.bytes), 0);
  if (total === 0) return null;
  return (
    <Panel title="Last download" tail={<span className="muted small num">{bytes(d.bytesFetched)}</span>}>
      <ul className="bars" aria-label="Bytes by source">
        {d.sources.map((s) => (
          <li key={s.name}>
            <span>{ways[s.name] ?? s.name}</span>
            <span className="num">{bytes(s.bytes)}</span>
            <span className="track"><span className="fill f-info" style={{ width: `${(100 * Number(s.bytes)) / total}%` }} /></span>
          </li>
        ))}
      </ul>
    </Panel>
  );
}
