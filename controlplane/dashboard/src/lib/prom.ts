import { recheckSession } from "./transport";

export interface PromSeries {
  metric: Record<string, string>;
  values: [number, string][];
}

/** Quotes a value for a PromQL label matcher. */
export function quote(v: string): string {
  return `"${v.replace(/[\\"]/g, (c) => `\\${c}`).replace(/\n/g, "\\n")}"`;
}

/** Asks the Prometheus API for a range, times in seconds. */
export async function queryRange(expr: string, start: number, end: number, step: number, signal: AbortSignal): Promise<PromSeries[]> {
  const params = new URLSearchParams({ query: expr, start: String(start), end: String(end), step: String(step) });
  const res = await fetch(`/api/v1/query_range?${params}`, { signal, headers: { Accept: "application/json" } });
  if (res.status === 401) recheckSession();
  const text = await res.text();
  let body: { status?: string; error?: string; data?: { result?: PromSeries[] } };
  try {
    body = JSON.parse(text) as typeof body;
  } catch {
    throw new Error(`query_range answered ${res.status}: ${text.slice(0, 200)}`);
  }
  if (body.status !== "success") throw new Error(body.error ?? `query_range answered ${res.status}`);
  return body.data?.result ?? [];
}

/** Parses the Prometheus text form of a series, name{a="b",c="d"}. */
export function parseSeries(text: string): { name: string; labels: Record<string, string> } {
  const brace = text.indexOf("{");
  if (brace < 0) return { name: text, labels: {} };
  const labels: Record<string, string> = {};
  for (const m of text.slice(brace + 1).matchAll(/([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"/g)) {
    labels[m[1] ?? ""] = (m[2] ?? "").replace(/\\(.)/g, (_, c: string) => (c === "n" ? "\n" : c));
  }
  return { name: text.slice(0, brace), labels };
}
