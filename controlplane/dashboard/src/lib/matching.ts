import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import type { Device } from "../gen/skein/fleet/v1/fleet_pb";
import type { DeviceSearch, FacetKey } from "../router";
import { facetKeys } from "../router";
import { site, stateName, updateNames } from "./device";
import { fleet, maxLoaded } from "./fleet";
import { releaseLabel } from "./format";
import { useStore } from "./store";
import { explainError, fleetClient } from "./transport";

const facetOf: Record<FacetKey, (d: Device) => string[]> = {
  state: (d) => [stateName(d)],
  update: updateNames,
  target: (d) => [d.target || "unknown"],
  site: (d) => [site(d) || "none"],
  release: (d) => [releaseLabel(d.runningReleaseName, d.runningRelease) || "none"],
  hardware: (d) => [d.hardware || "unknown"],
  condition: (d) => d.conditions.map((c) => c.name),
};

function matchesText(d: Device, words: string[]): boolean {
  if (words.length === 0) return true;
  const text = `${d.name} ${d.id} ${d.serial} ${d.hardware}`.toLowerCase();
  return words.every((w) => text.includes(w));
}

export type Facets = Record<FacetKey, Map<string, number>>;

/** The selector by which the server finds the same devices; what only the browser knows is left out. */
export function selectorOf(search: DeviceSearch): string {
  const terms: string[] = [];
  for (const key of ["state", "site", "release", "hardware"] as const) {
    const values = (search[key] ?? []).filter((v) => v !== "none" && v !== "unknown" && !/[,()]/.test(v));
    if (values.length === 1) terms.push(`${key}=${values[0]}`);
    else if (values.length > 1) terms.push(`${key} in (${values.join(",")})`);
  }
  return terms.join(",");
}

/**
 * The devices that match, and for each filter how many devices each of its
 * values would give with the other filters kept. Beyond what the browser holds
 * the server filters first.
 */
export function useMatching(search: DeviceSearch): { rows: Device[]; facets: Facets; beyond: boolean; failure: string } {
  const { devices, total, loading } = useStore(fleet);
  const beyond = loading === "ready" && total > maxLoaded;
  const selector = selectorOf(search);
  const found = useQuery({
    queryKey: ["devices", selector, search.q ?? ""],
    enabled: beyond && (selector !== "" || Boolean(search.q)),
    queryFn: async ({ signal }) => (await fleetClient.listDevices({ selector, search: search.q ?? "", pageSize: 1000, full: true }, { signal })).devices,
    refetchInterval: 5_000,
  });
  const pool = beyond && found.data ? found.data : devices;
  return useMemo(() => {
    const words = (search.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = facetKeys.filter((k) => search[k] !== undefined).map((k) => [k, new Set(search[k])] as const);
    const facets = Object.fromEntries(facetKeys.map((k) => [k, new Map<string, number>()])) as Facets;
    const rows: Device[] = [];
    for (const d of pool) {
      if (!matchesText(d, words)) continue;
      const misses = wanted.filter(([k, set]) => !facetOf[k](d).some((v) => set.has(v))).map(([k]) => k);
      if (misses.length === 0) rows.push(d);
      if (misses.length > 1) continue;
      for (const k of facetKeys) {
        if (misses.length === 1 && misses[0] !== k) continue;
        for (const v of facetOf[k](d)) facets[k].set(v, (facets[k].get(v) ?? 0) + 1);
      }
    }
    return { rows, facets, beyond, failure: found.error ? `The server could not search: ${explainError(found.error)}` : "" };
  }, [pool, search, beyond, found.error]);
}
