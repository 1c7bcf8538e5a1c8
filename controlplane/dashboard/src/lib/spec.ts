import type { JsonObject, JsonValue } from "@bufbuild/protobuf";

/** What the start form asks; the rest of the spec has the server's defaults. */
export interface RolloutForm {
  labels: string;
  canaryPerTarget: number;
  quarterPct: number;
  soakMinutes: number;
  minSuccessPct: number;
  abortPct: number;
  manual: boolean;
  rollback: boolean;
}

export const defaultForm: RolloutForm = {
  labels: "",
  canaryPerTarget: 2,
  quarterPct: 25,
  soakMinutes: 10,
  minSuccessPct: 95,
  abortPct: 20,
  manual: false,
  rollback: true,
};

/** Reads "site=lyon, ring=early"; an error text when it is not that. */
export function parseLabels(text: string): Record<string, string> | string {
  const out: Record<string, string> = {};
  for (const part of text.split(",").map((p) => p.trim()).filter(Boolean)) {
    const eq = part.indexOf("=");
    const key = part.slice(0, eq).trim();
    const value = part.slice(eq + 1).trim();
    if (eq <= 0 || !key || !value) return `“${part}” is not label=value`;
    out[key] = value;
  }
  return out;
}

/** The spec of a form: a canary of each target, a share, then the rest. */
export function buildSpec(release: string, f: RolloutForm): JsonObject | string {
  const labels = parseLabels(f.labels);
  if (typeof labels === "string") return labels;
  const timeout = { device: "1h", silent: "15m", offline: "skip" };
  const abort: JsonValue[] = [
    { failure: "ALL", pct: f.abortPct, minExecuted: 3 },
    { failure: "SILENT", count: 2 },
  ];
  const ramp = { kind: "exponential", initial: 5, factor: 2, maxInFlight: 500 };
  const gate = (minPct: number): JsonObject => ({ success: { minPct }, abort, approval: f.manual ? "manual" : "auto" });
  const soak = { min: `${f.soakMinutes}m` };
  const waves: JsonObject[] = [
    { name: "canary", perTarget: f.canaryPerTarget, timeout, soak, gate: gate(Math.min(90, f.minSuccessPct)) },
  ];
  if (f.quarterPct > 0 && f.quarterPct < 100) {
    waves.push({ name: "quarter", limit: `${f.quarterPct}%`, stratifyBy: ["target"], ramp, timeout, soak, gate: gate(f.minSuccessPct) });
  }
  waves.push({ name: "rest", ramp, timeout, gate: { ...gate(f.minSuccessPct), approval: "auto" } });
  const spec: JsonObject = { release, waves, rollbackTo: "previous", onAbort: { done: f.rollback ? "rollback" : "keep" } };
  if (Object.keys(labels).length > 0) spec.selector = { labels };
  return spec;
}
