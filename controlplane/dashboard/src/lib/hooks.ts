import { useEffect, useState, useSyncExternalStore } from "react";
import { Store, useStore } from "./store";

const now = new Store(Date.now());
setInterval(() => {
  if (document.visibilityState === "visible") now.set(Date.now());
}, 1000);

/** The time, ticking once a second. */
export function useNow(): number {
  return useStore(now);
}

export function useMedia(query: string): boolean {
  return useSyncExternalStore(
    (listener) => {
      const m = window.matchMedia(query);
      m.addEventListener("change", listener);
      return () => m.removeEventListener("change", listener);
    },
    () => window.matchMedia(query).matches,
  );
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title ? `${title} · Skein` : "Skein";
  }, [title]);
}

export function useDebounced<T>(value: T, millis: number): T {
  const [held, setHeld] = useState(value);
  useEffect(() => {
    const t = setTimeout(() => setHeld(value), millis);
    return () => clearTimeout(t);
  }, [value, millis]);
  return held;
}

/** Whether a key press belongs to a field and must not act as a shortcut. */
export function isTyping(e: KeyboardEvent): boolean {
  const t = e.target as HTMLElement | null;
  return t !== null && (t.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName));
}
