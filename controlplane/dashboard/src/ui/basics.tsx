import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { ReactNode } from "react";
import { dateTime, ms, relative, shortDigest } from "../lib/format";
import { useNow } from "../lib/hooks";
import { zone } from "../lib/prefs";
import { useStore } from "../lib/store";
import { explainError } from "../lib/transport";
import { Icon, type IconName } from "./Icon";
import { toast } from "./toast";

export type Tone = "ok" | "warn" | "bad" | "info" | "off" | "accent";

const tones: Record<string, { tone: Tone; icon: IconName }> = {
  online: { tone: "ok", icon: "check" },
  offline: { tone: "off", icon: "cross" },
  pending: { tone: "warn", icon: "clock" },
  revoked: { tone: "bad", icon: "ban" },
  settled: { tone: "ok", icon: "check" },
  idle: { tone: "ok", icon: "check" },
  converging: { tone: "info", icon: "spin" },
  updating: { tone: "info", icon: "spin" },
  failed: { tone: "bad", icon: "cross" },
  running: { tone: "info", icon: "spin" },
  soaking: { tone: "info", icon: "clock" },
  paused: { tone: "warn", icon: "pause" },
  aborting: { tone: "bad", icon: "stop" },
  aborted: { tone: "bad", icon: "stop" },
  succeeded: { tone: "ok", icon: "check" },
  passed: { tone: "ok", icon: "check" },
  pass: { tone: "ok", icon: "check" },
  fail: { tone: "bad", icon: "cross" },
  inconclusive: { tone: "warn", icon: "help" },
  waiting: { tone: "off", icon: "clock" },
  queued: { tone: "off", icon: "clock" },
  built: { tone: "ok", icon: "check" },
  building: { tone: "info", icon: "spin" },
  missing: { tone: "warn", icon: "help" },
  refused: { tone: "bad", icon: "cross" },
  offered: { tone: "accent", icon: "rollout" },
  "in-progress": { tone: "info", icon: "spin" },
  healthy: { tone: "ok", icon: "check" },
  "rolled-back": { tone: "warn", icon: "undo" },
  "rolling-back": { tone: "warn", icon: "undo" },
  stopped: { tone: "off", icon: "stop" },
  withdrawn: { tone: "off", icon: "cross" },
  skipped: { tone: "off", icon: "cross" },
  allowed: { tone: "ok", icon: "check" },
  denied: { tone: "bad", icon: "ban" },
  critical: { tone: "bad", icon: "warn" },
  warning: { tone: "warn", icon: "warn" },
  info: { tone: "info", icon: "info" },
  active: { tone: "ok", icon: "check" },
  used: { tone: "off", icon: "check" },
  expired: { tone: "off", icon: "clock" },
};

export function toneOf(word: string): Tone {
  return tones[word]?.tone ?? "off";
}

export function iconOf(word: string): IconName {
  return tones[word]?.icon ?? "info";
}

/** A state in a word, with a colour and a shape of its own. */
export function Badge({ word, children }: { word: string; children?: ReactNode }) {
  const { tone, icon } = tones[word] ?? { tone: "off" as Tone, icon: "info" as IconName };
  return (
    <span className={`badge ${tone}`}>
      <Icon name={icon} />
      {children ?? word}
    </span>
  );
}

/** A time as people say it, with the exact one and its zone on hover. */
export function Ago({ at, empty = "never" }: { at: Timestamp | undefined; empty?: string }) {
  const now = useNow();
  const z = useStore(zone);
  const t = ms(at);
  if (t === undefined) return <span className="muted">{empty}</span>;
  return (
    <time dateTime={new Date(t).toISOString()} title={dateTime(t, z)} className="nowrap num">
      {relative(t, now)}
    </time>
  );
}

/** A time in full with its zone. */
export function At({ at, empty = "–" }: { at: Timestamp | undefined; empty?: string }) {
  const z = useStore(zone);
  const t = ms(at);
  if (t === undefined) return <span className="muted">{empty}</span>;
  return (
    <time dateTime={new Date(t).toISOString()} className="num">
      {dateTime(t, z)}
    </time>
  );
}

export async function copyText(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    toast("ok", "Copied");
  } catch {
    toast("bad", "The browser did not allow copying; select the text instead");
  }
}

export function Copy({ text, shown, what }: { text: string; shown?: string; what: string }) {
  return (
    <button type="button" className="chip" title={`Copy ${text}`} onClick={() => void copyText(text)}>
      <span className="clip">{shown ?? text}</span>
      <span className="sr">, copy {what}</span>
      <Icon name="copy" />
    </button>
  );
}

export function Digest({ value, what }: { value: string; what: string }) {
  return value ? <Copy text={value} shown={shortDigest(value)} what={what} /> : <span className="muted">none</span>;
}

export function Panel({ title, tail, children, className = "", flush = false }: { title: ReactNode; tail?: ReactNode; children: ReactNode; className?: string; flush?: boolean }) {
  return (
    <section className={`panel ${className}`}>
      <header>
        <h2>{title}</h2>
        {tail}
      </header>
      {flush ? children : <div className="body">{children}</div>}
    </section>
  );
}

export function Empty({ title, children, icon = "empty" }: { title: string; children?: ReactNode; icon?: IconName }) {
  return (
    <div className="state">
      <Icon name={icon} />
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Failure({ error, what, retry }: { error: unknown; what: string; retry?: () => void }) {
  return (
    <div className="state" role="alert">
      <Icon name="warn" className="t-bad" />
      <h2>{what} could not be loaded</h2>
      <p>{explainError(error)}</p>
      {retry && (
        <button type="button" className="btn" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

/** A placeholder with the size of what is coming, so that nothing jumps. */
export function Bone({ w = "100%", h = 14 }: { w?: string | number; h?: number }) {
  return <span className="bone" style={{ width: w, height: h }} />;
}

export function Bones({ rows = 6, h = 18, label = "Loading" }: { rows?: number; h?: number; label?: string }) {
  return (
    <div className="stack" role="status" aria-label={label}>
      {Array.from({ length: rows }, (_, i) => (
        <Bone key={i} h={h} w={`${92 - ((i * 17) % 40)}%`} />
      ))}
    </div>
  );
}

export function Banner({ tone, icon, children }: { tone: Tone; icon?: IconName; children: ReactNode }) {
  const fallback: IconName = tone === "ok" ? "check" : tone === "info" ? "info" : "warn";
  return (
    <div className={`banner ${tone}`}>
      <Icon name={icon ?? fallback} />
      <div className="grow stack">{children}</div>
    </div>
  );
}

export interface Share {
  key: string;
  label: string;
  n: number;
  fill: string;
}

/** One bar whose parts add up to the whole. */
export function Strip({ parts, label, thin = false }: { parts: Share[]; label: string; thin?: boolean }) {
  const text = parts.filter((p) => p.n > 0).map((p) => `${p.n} ${p.label}`).join(", ");
  return (
    <div className={`strip ${thin ? "thin" : ""}`} role="img" aria-label={`${label}: ${text || "nothing yet"}`}>
      {parts
        .filter((p) => p.n > 0)
        .map((p) => (
          <span key={p.key} className={p.fill} style={{ flex: `${p.n} 1 0` }} title={`${p.n} ${p.label}`} />
        ))}
    </div>
  );
}
