import { useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useMemo, useRef } from "react";
import type { Reading } from "../../gen/skein/fleet/v1/fleet_pb";
import { useNow } from "../../lib/hooks";
import { parseSeries, queryRange, quote } from "../../lib/prom";
import { ms } from "../../lib/format";
import { explainError } from "../../lib/transport";
import { type Range, ranges } from "../../router";
import { Banner } from "../../ui/basics";
import { Chart, type Line } from "../../ui/Chart";

const seconds: Record<Range, number> = { "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800 };

interface Curve {
  /** The metric that live readings carry; empty when only the store can compute it. */
  metric: string;
  expr: (device: string, window: string) => string;
  label: (labels: Record<string, string>) => string;
}

interface Figure {
  title: string;
  unit: string;
  scale: number;
  digits: number;
  max?: number;
  none: string;
  curves: Curve[];
}

const plain = (metric: string, by: string, label: Curve["label"]): Curve => ({
  metric,
  expr: (d) => `${by ? `max by (${by})` : "max"} (${metric}{device=${d}})`,
  label,
});
const version = (l: Record<string, string>) => (l.version ? ` v${l.version}` : "");

const figures: Figure[] = [
  { title: "Temperature", unit: "°C", scale: 1, digits: 1, none: "No temperature in this range", curves: [plain("skein_device_temperature_celsius", "zone", (l) => l.zone ?? "zone")] },
  {
    title: "Load", unit: "%", scale: 100, digits: 0, max: 100, none: "No GPU or CPU load in this range",
    curves: [
      plain("skein_device_gpu_utilization_ratio", "", () => "GPU"),
      { metric: "skein_device_cpu_utilization_ratio", expr: (d) => `avg (skein_device_cpu_utilization_ratio{device=${d}})`, label: () => "CPU, mean of cores" },
      plain("skein_device_emc_utilization_ratio", "", () => "memory bus"),
    ],
  },
  { title: "Power", unit: "W", scale: 1, digits: 2, none: "No power reading in this range", curves: [plain("skein_device_power_total_watts", "", () => "module"), plain("skein_device_power_watts", "rail", (l) => l.rail ?? "rail")] },
  { title: "Memory", unit: "GiB", scale: 1 / 2 ** 30, digits: 2, none: "No memory reading in this range", curves: [plain("skein_device_memory_used_bytes", "", () => "used"), plain("skein_device_memory_total_bytes", "", () => "total"), plain("skein_device_swap_used_bytes", "", () => "swap used")] },
  { title: "Inference latency", unit: "ms", scale: 1000, digits: 2, none: "No inference in this range", curves: [plain("skein_inference_latency_p50_seconds", "model, version", (l) => `p50${version(l)}`), plain("skein_inference_latency_p99_seconds", "model, version", (l) => `p99${version(l)}`)] },
  { title: "Inferences", unit: "per second", scale: 1, digits: 2, none: "No inference in this range", curves: [{ metric: "", expr: (d, w) => `sum by (version, outcome) (rate(skein_inference_requests_total{device=${d}}[${w}]))`, label: (l) => `${l.outcome ?? "all"}${version(l)}` }] },
];

type Points = Map<string, { t: number[]; v: number[] }>;

async function load(device: string, range: Range, signal: AbortSignal): Promise<Points[]> {
  const end = Math.floor(Date.now() / 1000);
  const step = Math.max(2, Math.round(seconds[range] / 240));
  const window = `${Math.max(120, step * 4)}s`;
  return Promise.all(
    figures.map(async (f) => {
      const out: Points = new Map();
      const answers = await Promise.all(f.curves.map((c) => queryRange(c.expr(quote(device), window), end - seconds[range], end, step, signal)));
      answers.forEach((series, i) => {
        for (const s of series) {
          const key = f.curves[i]?.label(s.metric) ?? "";
          const t: number[] = [];
          const v: number[] = [];
          for (const [at, text] of s.values) {
            const n = Number(text) * f.scale;
            if (Number.isFinite(n)) {
              t.push(at);
              v.push(n);
            }
          }
          if (t.length > 0) out.set(key, { t, v });
        }
      });
      return out;
    }),
  );
}

/** Live readings of one figure: the mean of those that share a label. */
function live(f: Figure, readings: Reading[]): Map<string, { at: number; v: number }> {
  const sums = new Map<string, { at: number; v: number; n: number }>();
  for (const r of readings) {
    const { name, labels } = parseSeries(r.series);
    const curve = f.curves.find((c) => c.metric === name);
    const at = ms(r.time);
    if (!curve || at === undefined) continue;
    const key = curve.label(labels);
    const s = sums.get(key) ?? { at: 0, v: 0, n: 0 };
    sums.set(key, { at: Math.max(s.at, at / 1000), v: s.v + r.value, n: s.n + 1 });
  }
  return new Map([...sums].map(([k, s]) => [k, { at: s.at, v: (s.v / s.n) * f.scale }]));
}

export function DeviceCharts({ device, range, readings }: { device: string; range: Range; readings: Reading[] }) {
  const navigate = useNavigate({ from: "/devices/$device" });
  const history = useQuery({
    queryKey: ["series", device, range],
    queryFn: ({ signal }) => load(device, range, signal),
    refetchInterval: Math.max(15_000, (seconds[range] / 240) * 1000),
    placeholderData: (old) => old,
    retry: 1,
  });
  const now = Math.floor(useNow() / 1000 / 2) * 2;

  // Readings that came after the history, kept until the history has them.
  const tails = useRef({ device, points: figures.map(() => new Map<string, { t: number[]; v: number[] }>()) });
  if (tails.current.device !== device) tails.current = { device, points: figures.map(() => new Map()) };
  const lines = useMemo(() => {
    return figures.map((f, i): Line[] => {
      const past: Points = history.data?.[i] ?? new Map();
      const tail = tails.current.points[i] ?? new Map<string, { t: number[]; v: number[] }>();
      for (const [key, { at, v }] of live(f, readings)) {
        const p = tail.get(key) ?? { t: [], v: [] };
        if (at > (p.t.at(-1) ?? 0)) {
          p.t.push(at);
          p.v.push(v);
        }
        tail.set(key, p);
      }
      const keys = [...new Set([...past.keys(), ...tail.keys()])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      return keys.map((label) => {
        const a = past.get(label) ?? { t: [], v: [] };
        const b = tail.get(label) ?? { t: [], v: [] };
        const end = a.t.at(-1) ?? 0;
        let cut = b.t.findIndex((t) => t > end);
        if (cut < 0) cut = b.t.length;
        b.t.splice(0, cut);
        b.v.splice(0, cut);
        return { label, t: [...a.t, ...b.t], v: [...a.v, ...b.v] };
      });
    });
  }, [history.data, readings]);

  return (
    <section className="stack" aria-label="Measurements">
      <div className="row spread wrap">
        <h2>Measurements</h2>
        <div className="segments" role="group" aria-label="Range">
          {ranges.map((r) => (
            <button key={r} type="button" aria-pressed={r === range} onClick={() => void navigate({ search: { range: r === "1h" ? undefined : r }, replace: true, resetScroll: false })}>
              {r}
            </button>
          ))}
        </div>
      </div>
      {history.error && <Banner tone="warn">The history could not be loaded: {history.error instanceof Error ? history.error.message : explainError(history.error)}. Live readings go on.</Banner>}
      <div className="charts">
        {figures.map((f, i) => (
          <Chart key={f.title} title={f.title} unit={f.unit} digits={f.digits} max={f.max} lines={lines[i] ?? []} from={now - seconds[range]} to={now} note={history.isPending ? "Loading…" : f.none} />
        ))}
      </div>
    </section>
  );
}
