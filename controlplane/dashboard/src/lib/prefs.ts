import { Store } from "./store";

export type Theme = "system" | "light" | "dark";
export type Zone = "local" | "utc";

function read<T extends string>(key: string, allowed: readonly T[], fallback: T): T {
  try {
    const v = localStorage.getItem(key) as T | null;
    return v !== null && allowed.includes(v) ? v : fallback;
  } catch {
    return fallback;
  }
}

function write(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage is off: the choice lasts until the page is closed.
  }
}

export const theme = new Store<Theme>(read("skein.theme", ["system", "light", "dark"], "system"));
export const zone = new Store<Zone>(read("skein.zone", ["local", "utc"], "local"));

export function setTheme(t: Theme): void {
  if (t === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = t;
  write("skein.theme", t);
  theme.set(t);
}

export function setZone(z: Zone): void {
  write("skein.zone", z);
  zone.set(z);
}

export function localZoneName(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
}

export function zoneName(z: Zone): string {
  return z === "utc" ? "UTC" : localZoneName();
}
