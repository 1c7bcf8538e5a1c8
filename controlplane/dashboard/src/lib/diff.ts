export interface Change {
  path: string;
  before: string | undefined;
  after: string | undefined;
}

function flatten(value: unknown, path: string, out: Map<string, string>): void {
  if (value !== null && typeof value === "object") {
    for (const [k, v] of Object.entries(value)) flatten(v, path ? `${path}.${k}` : k, out);
  } else if (value !== undefined) {
    out.set(path || "value", String(value));
  }
}

function read(text: string): Map<string, string> {
  const out = new Map<string, string>();
  if (!text) return out;
  try {
    flatten(JSON.parse(text), "", out);
  } catch {
    out.set("value", text);
  }
  return out;
}

/** What differs between two JSON texts, by path. */
export function diffJson(before: string, after: string): Change[] {
  const a = read(before);
  const b = read(after);
  return [...new Set([...a.keys(), ...b.keys()])]
    .filter((k) => a.get(k) !== b.get(k))
    .sort()
    .map((path) => ({ path, before: a.get(path), after: b.get(path) }));
}
