import type { Rollout, Wave } from "../gen/skein/rollout/v1/rollout_pb";
import type { Share } from "../ui/basics";

/** States of a device in a rollout, in the order in which they are drawn. */
export const executionStates = ["healthy", "in-progress", "waiting", "offered", "failed", "rolling-back", "rolled-back", "queued", "withdrawn", "skipped"] as const;

export const executionFill: Record<string, string> = {
  healthy: "f-ok",
  "in-progress": "f-info",
  waiting: "f-wait",
  offered: "f-accent",
  failed: "f-bad",
  "rolling-back": "f-warn",
  "rolled-back": "f-warn",
  queued: "f-queue",
  withdrawn: "f-void",
  skipped: "f-void",
};

/** Of the devices in progress, waiting ones are held back by their policy. */
export function waveParts(w: Wave, waiting = 0): Share[] {
  return [
    { key: "healthy", label: "healthy", n: w.healthy, fill: "f-ok" },
    { key: "in-progress", label: "in progress", n: Math.max(0, w.inProgress - waiting), fill: "f-info" },
    { key: "waiting", label: "waiting for a window or an allowance", n: waiting, fill: "f-wait" },
    { key: "failed", label: "failed", n: w.failed, fill: "f-bad" },
    { key: "rolled-back", label: "rolled back", n: w.rolledBack, fill: "f-warn" },
    { key: "queued", label: "queued", n: Math.max(0, w.queued || w.devices - w.healthy - w.inProgress - w.failed - w.rolledBack), fill: "f-queue" },
  ];
}

export function rolloutParts(r: Rollout, waiting = 0): Share[] {
  const moving = r.waves.reduce((sum, w) => sum + w.inProgress, 0);
  return [
    { key: "healthy", label: "healthy", n: r.healthy, fill: "f-ok" },
    { key: "in-progress", label: "in progress", n: Math.max(0, moving - waiting), fill: "f-info" },
    ...(waiting > 0 ? [{ key: "waiting", label: "waiting for a window or an allowance", n: waiting, fill: "f-wait" }] : []),
    { key: "failed", label: "failed", n: r.failed, fill: "f-bad" },
    { key: "rolled-back", label: "rolled back", n: r.rolledBack, fill: "f-warn" },
    { key: "queued", label: isOpen(r) ? "queued" : "not reached", n: Math.max(0, r.devices - r.healthy - moving - r.failed - r.rolledBack), fill: "f-queue" },
  ];
}

export function isOpen(r: Rollout): boolean {
  return ["pending", "running", "paused", "aborting"].includes(r.phase);
}
