import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { zoneName, type Zone } from "./prefs";

export function ms(t: Timestamp | undefined): number | undefined {
  return t === undefined ? undefined : timestampMs(t);
}

const formats = new Map<string, Intl.DateTimeFormat>();

function format(kind: "full" | "time", z: Zone): Intl.DateTimeFormat {
  const key = `${kind}/${z}`;
  let f = formats.get(key);
  if (!f) {
    const timeZone = zoneName(z);
    f = new Intl.DateTimeFormat("en-GB", {
      timeZone,
      timeZoneName: "short",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
      hourCycle: "h23",
      ...(kind === "full" ? { day: "2-digit", month: "short", year: "numeric" } : {}),
    });
    formats.set(key, f);
  }
  return f;
}

/** Date, time and zone, for example "24 Nov 2026, 07:31:05 UTC". */
export function dateTime(at: number, z: Zone): string {
  return format("full", z).format(at);
}

export function clockTime(at: number, z: Zone): string {
  return format("time", z).format(at);
}

/** A length of time in one or two units: "4 s", "3 min", "2 h 10 min", "5 d". */
export function duration(millis: number): string {
  const s = Math.max(0, Math.round(millis / 1000));
  if (s < 60) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return s % 60 && m < 10 ? `${m} min ${s % 60} s` : `${m} min`;
  const h = Math.floor(m / 60);
  if (h < 48) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
  const d = Math.floor(h / 24);
  return d < 90 ? `${d} d` : `${Math.round(d / 30.4)} months`;
}

export function relative(at: number, now: number): string {
  const d = now - at;
  if (d < -1500) return `in ${duration(-d)}`;
  if (d < 1500) return "now";
  if (d >= 60_000 && d < 3_600_000) return `${Math.floor(d / 60_000)} min ago`;
  return `${duration(d)} ago`;
}

const unitsIEC = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n: bigint | number): string {
  let v = Number(n);
  let u = 0;
  while (v >= 1024 && u < unitsIEC.length - 1) {
    v /= 1024;
    u++;
  }
  return `${u === 0 || v >= 100 ? Math.round(v) : v.toFixed(1)} ${unitsIEC[u]}`;
}

const grouped = new Intl.NumberFormat("en-GB");

export function count(n: number | bigint): string {
  return grouped.format(n);
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

export function percent(part: number, whole: number): string {
  if (whole === 0) return "–";
  const p = (100 * part) / whole;
  // Never round to 0 % or 100 % what is not.
  if (p > 0 && p < 1) return "< 1 %";
  if (p > 99 && p < 100) return "> 99 %";
  return `${Math.round(p)} %`;
}

/** The first 12 hex digits of a digest. */
export function shortDigest(d: string): string {
  return d.replace(/^sha256:/, "").slice(0, 12);
}

/** The name of a release, or its short digest, or nothing. */
export function releaseLabel(name: string, digest: string): string {
  return name || shortDigest(digest);
}

/** A target in words: "arm64 · SM 8.7 · 8 GB · TRT 10.3.0 · L4T 36.4.3". */
export function targetLabel(target: string): string {
  if (!target) return "unknown target";
  const [platform = "", ...attrs] = target.split(";");
  const map = new Map(attrs.map((a) => a.split("=", 2) as [string, string]));
  const parts = [platform.replace(/^linux\//, "")];
  const say = (key: string, word: (v: string) => string) => {
    const v = map.get(key);
    map.delete(key);
    if (v !== undefined) parts.push(word(v));
  };
  say("sm", (v) => `SM ${v}`);
  say("mem", (v) => `${v} GB`);
  say("trt", (v) => `TRT ${v}`);
  say("l4t", (v) => `L4T ${v}`);
  say("ort", () => "ONNX Runtime");
  say("dla", (v) => (v === "0" ? "no DLA" : `${v} DLA`));
  map.delete("cuda");
  for (const [k, v] of map) parts.push(`${k} ${v}`);
  return parts.join(" · ");
}

/** Text that begins a line. */
export function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
