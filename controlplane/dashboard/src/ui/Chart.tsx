import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";
import { clockTime } from "../lib/format";
import { useMedia } from "../lib/hooks";
import { theme, zone, zoneName } from "../lib/prefs";
import { useStore } from "../lib/store";

export interface Line {
  label: string;
  /** Points by time in seconds, rising. */
  t: number[];
  v: number[];
}

interface Props {
  title: string;
  unit: string;
  lines: Line[];
  from: number;
  to: number;
  digits?: number;
  max?: number;
  note?: string;
}

/** Resolves a colour token to what a canvas understands. */
function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  probe.style.display = "none";
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** Puts lines with times of their own on one time axis. */
function join(lines: Line[]): uPlot.AlignedData {
  const times = [...new Set(lines.flatMap((l) => l.t))].sort((a, b) => a - b);
  const at = new Map(times.map((t, i) => [t, i]));
  const columns = lines.map((l) => {
    const column: (number | null)[] = new Array<number | null>(times.length).fill(null);
    l.t.forEach((t, i) => {
      column[at.get(t) ?? 0] = l.v[i] ?? null;
    });
    return column;
  });
  return [times, ...columns];
}

const sync = uPlot.sync("skein");

/** A line chart over time with the values under the pointer, or the latest, below it. */
export function Chart({ title, unit, lines, from, to, digits = 1, max, note }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const [at, setAt] = useState<number | null>(null);
  const t = useStore(theme);
  const z = useStore(zone);
  const systemDark = useMedia("(prefers-color-scheme: dark)");
  const data = useMemo(() => join(lines), [lines]);
  const labels = lines.map((l) => l.label).join("\n");
  const range = useRef({ from, to });
  range.current = { from, to };
  const latest = useRef(data);
  latest.current = data;

  useEffect(() => {
    const el = box.current;
    if (!el || labels === "") return;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px 'Inter Variable', system-ui, sans-serif" };
    const u = new uPlot(
      {
        width: el.clientWidth,
        height: el.clientHeight,
        tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), zoneName(z)),
        legend: { show: false },
        cursor: { sync: { key: sync.key }, y: false, points: { size: 6 }, drag: { x: false, y: false } },
        scales: {
          x: { time: true, range: () => [range.current.from, range.current.to] },
          y: { range: (_, lo, hi) => [Math.min(0, lo ?? 0), max ?? ((hi ?? 1) <= 0 ? 1 : (hi ?? 1) * 1.08)] },
        },
        axes: [
          { ...axis, size: 28, space: 70, values: [[86400, "{DD} {MMM}", null, null, null, null, null, null, 1], [3600, "{HH}:{mm}", "\n{DD} {MMM}", null, "\n{DD} {MMM}", null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
          { ...axis, size: 46, space: 34 },
        ],
        series: [{}, ...labels.split("\n").map((label, i) => ({ label, stroke: colour(`--c${(i % 8) + 1}`), width: 1.6, spanGaps: true, points: { size: 4 } }))],
        hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
      },
      latest.current,
      el,
    );
    plot.current = u;
    const watch = new ResizeObserver(() => u.setSize({ width: el.clientWidth, height: el.clientHeight }));
    watch.observe(el);
    return () => {
      watch.disconnect();
      u.destroy();
      plot.current = undefined;
    };
  }, [labels, t, z, systemDark, max]);

  useEffect(() => plot.current?.setData(data), [data, from, to]);

  const times = data[0];
  const shown = at !== null && at < times.length ? at : times.length - 1;
  const value = (i: number): string => {
    const column = data[i + 1];
    for (let k = shown; column && k >= 0; k--) {
      const v = column[k];
      if (v !== null && v !== undefined) return `${v.toFixed(digits)} ${unit}`;
      if (at !== null && shown - k > 20) break;
    }
    return "–";
  };
  const when = at !== null && times[shown] !== undefined ? clockTime(times[shown] * 1000, z) : "latest";
  const summary = lines.map((l) => `${l.label}: latest ${l.v.at(-1)?.toFixed(digits) ?? "none"}, lowest ${low(l.v).toFixed(digits)}, highest ${high(l.v).toFixed(digits)} ${unit}`).join("; ");

  return (
    <section className="panel chart">
      <header>
        <h3>{title}</h3>
        <span className="muted small">{unit}</span>
        <span className="grow" />
        <span className="muted small num">{lines.length > 0 ? when : ""}</span>
      </header>
      <div className="plot" ref={box} role="img" aria-label={`${title} over time. ${summary || (note ?? "No data in this range")}.`}>
        {lines.length === 0 && <div className="overlay small">{note ?? "No data in this range"}</div>}
      </div>
      <ul className="legend">
        {lines.map((l, i) => (
          <li key={l.label}>
            <span className="swatch" style={{ background: `var(--c${(i % 8) + 1})` }} />
            {l.label} <strong>{value(i)}</strong>
          </li>
        ))}
      </ul>
    </section>
  );
}

function low(v: number[]): number {
  return v.reduce((a, b) => Math.min(a, b), v[0] ?? 0);
}

function high(v: number[]): number {
  return v.reduce((a, b) => Math.max(a, b), v[0] ?? 0);
}
