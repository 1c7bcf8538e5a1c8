import { useEffect } from "react";
import type { Device, FleetStatus } from "../gen/skein/fleet/v1/fleet_pb";
import { explainError, fleetClient } from "./transport";
import { Store } from "./store";
import { keepStream, type StreamState } from "./stream";

/** How many devices the browser holds at most; beyond it the server filters. */
export const maxLoaded = 20_000;
const pageSize = 1_000;

interface Fleet {
  status: FleetStatus | undefined;
  stream: StreamState;
  error: string;
  updated: number;
  devices: readonly Device[];
  total: number;
  loading: "idle" | "loading" | "ready" | "failed";
  loadError: string;
}

/** The whole fleet as this page sees it, kept fresh by one stream. */
export const fleet = new Store<Fleet>({
  status: undefined,
  stream: "connecting",
  error: "",
  updated: 0,
  devices: [],
  total: 0,
  loading: "idle",
  loadError: "",
});

const byId = new Map<string, Device>();
let loadId = 0;
let changedWhileLoading: Map<string, Device> | undefined;

function publish(part: Partial<Fleet>): void {
  fleet.update({ ...part, devices: [...byId.values()] });
}

/** Loads all devices page by page; later changes come from the stream. */
export async function loadDevices(): Promise<void> {
  const mine = ++loadId;
  changedWhileLoading = new Map();
  fleet.update({ loading: "loading", loadError: "" });
  const seen = new Map<string, Device>();
  let pageToken = "";
  let total = 0;
  try {
    do {
      const page = await fleetClient.listDevices({ pageSize, pageToken, full: true });
      if (mine !== loadId) return;
      for (const d of page.devices) seen.set(d.id, d);
      total = page.total || seen.size;
      pageToken = page.nextPageToken;
      if (byId.size === 0 || seen.size > byId.size) {
        for (const [id, d] of seen) byId.set(id, d);
        publish({ total });
      }
    } while (pageToken !== "" && seen.size < maxLoaded);
  } catch (e) {
    if (mine === loadId) fleet.update({ loading: "failed", loadError: explainError(e) });
    return;
  }
  byId.clear();
  for (const [id, d] of seen) byId.set(id, d);
  for (const [id, d] of changedWhileLoading ?? []) byId.set(id, d);
  changedWhileLoading = undefined;
  publish({ loading: "ready", total: Math.max(total, byId.size) });
}

function apply(changed: readonly Device[], status: FleetStatus | undefined): void {
  for (const d of changed) {
    changedWhileLoading?.set(d.id, d);
    if (byId.has(d.id) || (fleet.get().loading === "ready" && byId.size < maxLoaded)) byId.set(d.id, d);
  }
  const part: Partial<Fleet> = { updated: Date.now() };
  if (status) part.status = status;
  if (changed.length > 0) publish({ ...part, total: Math.max(status?.devices ?? 0, byId.size) });
  else fleet.update(part);
}

/** Puts one device that an action returned into the list at once. */
export function noteDevice(d: Device | undefined): void {
  if (d) apply([d], undefined);
}

/** Keeps the fleet fresh while the calling component is mounted. */
export function useFleetStream(): void {
  useEffect(
    () =>
      keepStream({
        open: (signal) => fleetClient.watchFleet({}, { signal }),
        onMessage: (m, first) => {
          // After a reconnection changes were missed: load the list again.
          if (first && fleet.get().loading === "ready") void loadDevices();
          apply(m.changed, m.status);
        },
        onState: (stream, err) => fleet.update({ stream, error: err ? explainError(err) : "" }),
      }),
    [],
  );
}

/** Forgets everything, at sign-out. */
export function forgetFleet(): void {
  loadId++;
  byId.clear();
  fleet.set({ status: undefined, stream: "connecting", error: "", updated: 0, devices: [], total: 0, loading: "idle", loadError: "" });
}

/** The devices, loading them on first use when they are wanted. */
export function useDevices(wanted = true): void {
  useEffect(() => {
    if (wanted && fleet.get().loading === "idle") void loadDevices();
  }, [wanted]);
}
