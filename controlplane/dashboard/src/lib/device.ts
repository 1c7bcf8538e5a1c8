import { type Device, DeviceState, type Generation } from "../gen/skein/fleet/v1/fleet_pb";

export const stateNames: Record<DeviceState, string> = {
  [DeviceState.UNSPECIFIED]: "unknown",
  [DeviceState.PENDING]: "pending",
  [DeviceState.ONLINE]: "online",
  [DeviceState.OFFLINE]: "offline",
  [DeviceState.REVOKED]: "revoked",
};

export function stateName(d: Device): string {
  return stateNames[d.state] ?? "unknown";
}

function sameGeneration(a: Generation | undefined, b: Generation | undefined): boolean {
  return (a?.epoch ?? 0n) === (b?.epoch ?? 0n) && (a?.counter ?? 0n) === (b?.counter ?? 0n);
}

export function converged(d: Device): boolean {
  return sameGeneration(d.desiredGeneration, d.heldGeneration) && d.desiredRelease === d.runningRelease;
}

/** An update that its policy holds back, which is no failure. */
export function waits(d: Device): boolean {
  return d.phase === "updating" && !!d.transfer?.waits;
}

/** How the device's update stands: failed, waiting for its policy, converging or settled. */
export function updateName(d: Device): "failed" | "waiting" | "converging" | "settled" {
  if (waits(d)) return "waiting";
  if (d.phase === "failed" || d.failureClass !== "") return "failed";
  if (d.phase === "updating" || !converged(d)) return "converging";
  return "settled";
}

/** The same as the fleet's figures count it: a failed device may be converging too. */
export function updateNames(d: Device): string[] {
  const names: string[] = [];
  if (waits(d)) names.push("waiting");
  if (d.failureClass !== "" || d.phase === "failed") names.push("failed");
  if (d.state !== DeviceState.PENDING && !converged(d)) names.push("converging");
  return names.length > 0 ? names : ["settled"];
}

/** A board's name without what all boards share. */
export function hardwareLabel(hardware: string): string {
  return hardware.replace(/^NVIDIA /, "").replace(/ (Engineering Reference )?Developer Kit/, "");
}

export function generation(g: Generation | undefined): string {
  return g === undefined ? "none" : `${g.epoch}.${g.counter}`;
}

export function site(d: Device): string {
  return d.labels.site ?? "";
}

export const journalSteps = ["fetch", "verify", "stage", "build", "load", "prove", "switch", "soak", "commit"] as const;

export const stepHelp: Record<string, string> = {
  fetch: "The blobs of the release arrive in the local store",
  verify: "Trust, digests, target and compatibility agree",
  stage: "Files are laid out and synced",
  build: "The engine is built on the device, when the release asks for it",
  load: "The workload is loaded beside the one that serves",
  prove: "The golden set is answered within tolerance on this device",
  switch: "Requests go to the new workload",
  soak: "Watched for a while, ready to go back",
  commit: "The new release is final",
};
