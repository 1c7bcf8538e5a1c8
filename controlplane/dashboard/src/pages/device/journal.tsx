import type { Device, StepEntry } from "../../gen/skein/fleet/v1/fleet_pb";
import { journalSteps, stepHelp } from "../../lib/device";
import { duration, ms, plural, shortDigest } from "../../lib/format";
import { At, Panel, type Tone } from "../../ui/basics";
import { Icon, type IconName } from "../../ui/Icon";

const marks: Record<string, { icon: IconName; tone: Tone; spin?: boolean }> = {
  done: { icon: "check", tone: "ok" },
  started: { icon: "spin", tone: "info", spin: true },
  failed: { icon: "cross", tone: "bad" },
  undone: { icon: "undo", tone: "warn" },
};

/** The last word on each step of the newest attempt. */
function lastAttempt(journal: StepEntry[]): Map<string, StepEntry> {
  const out = new Map<string, StepEntry>();
  let begin = 0;
  journal.forEach((e, i) => {
    if (e.step === journalSteps[0] && e.state === "started") begin = i;
  });
  for (const e of journal.slice(begin)) {
    const had = out.get(e.step);
    // A failure is the cause; that the step was undone afterwards follows from it.
    if (had?.state === "failed" && e.state === "undone") continue;
    out.set(e.step, e);
  }
  return out;
}

function byTime(journal: StepEntry[]): StepEntry[] {
  return journal.map((e, i) => ({ e, i })).sort((a, b) => (ms(a.e.time) ?? 0) - (ms(b.e.time) ?? 0) || a.i - b.i).map((x) => x.e);
}

/** How long a finished step took, from its start in the same release. */
function took(journal: StepEntry[], i: number): string {
  const e = journal[i];
  if (!e || e.state === "started") return "";
  for (let k = i - 1; k >= 0; k--) {
    const s = journal[k];
    if (s && s.step === e.step && s.state === "started" && s.release === e.release) {
      const from = ms(s.time);
      const to = ms(e.time);
      if (from === undefined || to === undefined) return "";
      return to - from < 1000 ? `${to - from} ms` : duration(to - from);
    }
  }
  return "";
}

export function Journal({ device: d }: { device: Device }) {
  const journal = byTime(d.journal);
  const attempt = lastAttempt(journal);
  return (
    <Panel title="Update journal" tail={journal.length > 0 && <span className="muted small mono">{shortDigest(journal.at(-1)?.release ?? "")}</span>}>
      <ol className="steps" aria-label="Steps of the last update" tabIndex={0}>
        {journalSteps.map((step) => {
          const e = attempt.get(step);
          const mark = e ? marks[e.state] : undefined;
          return (
            <li key={step} className={e?.state ?? ""} title={`${stepHelp[step]}${e?.message ? `. ${e.message}` : ""}`}>
              <span className="mark">{mark ? <Icon name={mark.icon} className={mark.spin ? "spin" : ""} /> : <span className="sr">not reached</span>}</span>
              <span className="word">{step}<span className="sr"> {e?.state}</span></span>
            </li>
          );
        })}
      </ol>
      {journal.length === 0 ? (
        <p className="muted after">No update has run on this device yet.</p>
      ) : (
        <div className="after">
          <Entries journal={journal} from={Math.max(0, journal.length - 4)} />
          {journal.length > 4 && (
            <details>
              <summary>{plural(journal.length - 4, "older entry", "older entries")}</summary>
              <Entries journal={journal.slice(0, -4)} from={0} />
            </details>
          )}
        </div>
      )}
    </Panel>
  );
}

function Entries({ journal, from }: { journal: StepEntry[]; from: number }) {
  return (
    <ol className="timeline">
      {journal.map((e, i) => ({ e, i })).slice(from).reverse().map(({ e, i }) => (
        <li key={i}>
          <span className={`dot ${marks[e.state]?.tone ?? "off"}`} />
          <span><strong>{e.step}</strong> {e.state} <span className="muted num">{took(journal, i)}</span></span>
          <span className="muted small"><At at={e.time} /></span>
          {e.message && <p className="small">{e.message}</p>}
        </li>
      ))}
    </ol>
  );
}
