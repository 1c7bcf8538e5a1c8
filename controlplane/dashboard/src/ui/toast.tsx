import { Store, useStore } from "../lib/store";
import { Icon } from "./Icon";

interface Toast {
  id: number;
  tone: "ok" | "bad";
  text: string;
}

const toasts = new Store<Toast[]>([]);
let next = 1;

function dismiss(id: number): void {
  toasts.set(toasts.get().filter((t) => t.id !== id));
}

/** Says that something was done, or that it was not and why. */
export function toast(tone: Toast["tone"], text: string): void {
  const id = next++;
  toasts.set([...toasts.get().slice(-2), { id, tone, text }]);
  setTimeout(() => dismiss(id), tone === "bad" ? 12_000 : 5_000);
}

export function Toasts() {
  const list = useStore(toasts);
  return (
    <div className="toasts" role="status" aria-live="polite">
      {list.map((t) => (
        <div key={t.id} className="toast">
          <Icon name={t.tone === "ok" ? "check" : "warn"} className={`t-${t.tone}`} />
          <span className="grow">{t.text}</span>
          <button type="button" className="btn ghost small icon-only" aria-label="Dismiss" onClick={() => dismiss(t.id)}>
            <Icon name="cross" />
          </button>
        </div>
      ))}
    </div>
  );
}
