import { useMemo } from "react";
import type { DeviceExecution, Rollout } from "../../gen/skein/rollout/v1/rollout_pb";
import { waits } from "../../lib/device";
import { fleet, useDevices } from "../../lib/fleet";
import { isOpen } from "../../lib/rollout";
import { usePart } from "../../lib/store";

/**
 * The executions, with the state "waiting" for devices under way whose policy
 * holds them back: they are neither slow nor failing. What the device itself
 * says decides, so the fleet is loaded while somebody watches an open rollout.
 */
export function useWaiting(r: Rollout | undefined, executions: Map<string, DeviceExecution>): DeviceExecution[] {
  useDevices(r !== undefined && isOpen(r));
  const devices = usePart(fleet, (f) => f.devices);
  return useMemo(() => {
    const held = new Map(devices.filter((d) => waits(d) && d.desiredRelease === r?.release).map((d) => [d.id, d.transfer?.waits ?? ""]));
    return [...executions.values()].map((x) => {
      const why = held.get(x.device);
      return why !== undefined && (x.state === "in-progress" || x.state === "offered") ? { ...x, state: "waiting", message: `waits for the ${why} of its policy` } : x;
    });
  }, [devices, executions, r?.release]);
}
