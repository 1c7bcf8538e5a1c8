import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Outlet } from "@tanstack/react-router";
import { asList, asText, oneOf, parseSearch, stringifySearch } from "./lib/search";
import { Login } from "./pages/Login";
import { NotFound, Problem, Shell } from "./pages/Shell";
import { Overview } from "./pages/Overview";

const pages: { preload?: () => Promise<void> | undefined }[] = [];

/** A page that is loaded when it is first shown, or by loadPages. */
const later: typeof lazyRouteComponent = (importer, name) => {
  const page = lazyRouteComponent(importer, name);
  pages.push(page);
  return page;
};

/** Loads the remaining pages, so that going to one needs no server any more. */
export function loadPages(): void {
  for (const p of pages) p.preload?.()?.catch(() => undefined);
}

const root = createRootRoute({ component: Outlet, notFoundComponent: NotFound, errorComponent: ({ error }) => <Problem error={error} /> });

const login = createRoute({
  getParentRoute: () => root,
  path: "/login",
  component: Login,
  validateSearch: (s: Record<string, unknown>): { next?: string } => ({ next: asText(s.next) }),
});

const shell = createRoute({ getParentRoute: () => root, id: "shell", component: Shell });

const overview = createRoute({ getParentRoute: () => shell, path: "/", component: Overview });

export const sortKeys = ["name", "state", "update", "release", "hardware", "site", "seen"] as const;
export const facetKeys = ["state", "update", "target", "site", "release", "hardware", "condition"] as const;
export type FacetKey = (typeof facetKeys)[number];
export interface DeviceSearch extends Partial<Record<FacetKey, string[]>> {
  q?: string;
  sort?: (typeof sortKeys)[number];
  dir?: "desc";
}

const devices = createRoute({
  getParentRoute: () => shell,
  path: "/devices",
  component: later(() => import("./pages/Devices"), "Devices"),
  validateSearch: (s: Record<string, unknown>): DeviceSearch => ({
    q: asText(s.q),
    state: asList(s.state),
    update: asList(s.update),
    target: asList(s.target),
    site: asList(s.site),
    release: asList(s.release),
    hardware: asList(s.hardware),
    condition: asList(s.condition),
    sort: oneOf(s.sort, sortKeys),
    dir: oneOf(s.dir, ["desc"] as const),
  }),
});

export const ranges = ["15m", "1h", "6h", "24h", "7d"] as const;
export type Range = (typeof ranges)[number];

const device = createRoute({
  getParentRoute: () => shell,
  path: "/devices/$device",
  component: later(() => import("./pages/Device"), "DevicePage"),
  validateSearch: (s: Record<string, unknown>): { range?: Range } => ({ range: oneOf(s.range, ranges) }),
});

const enrol = createRoute({ getParentRoute: () => shell, path: "/enrol", component: later(() => import("./pages/Enrol"), "Enrol") });

const rollouts = createRoute({ getParentRoute: () => shell, path: "/rollouts", component: later(() => import("./pages/Rollouts"), "Rollouts") });

const newRollout = createRoute({
  getParentRoute: () => shell,
  path: "/rollouts/new",
  component: later(() => import("./pages/StartRollout"), "StartRollout"),
  validateSearch: (s: Record<string, unknown>): { release?: string } => ({ release: asText(s.release) }),
});

const rollout = createRoute({ getParentRoute: () => shell, path: "/rollouts/$rollout", component: later(() => import("./pages/Rollout"), "RolloutPage") });

const releases = createRoute({ getParentRoute: () => shell, path: "/releases", component: later(() => import("./pages/Releases"), "Releases") });
const release = createRoute({ getParentRoute: () => shell, path: "/releases/$release", component: later(() => import("./pages/Releases"), "ReleasePage") });
const models = createRoute({ getParentRoute: () => shell, path: "/models", component: later(() => import("./pages/Models"), "Models") });
const model = createRoute({ getParentRoute: () => shell, path: "/models/$model", component: later(() => import("./pages/Models"), "ModelPage") });

const engines = createRoute({ getParentRoute: () => shell, path: "/engines", component: later(() => import("./pages/Engines"), "Engines") });

const audit = createRoute({
  getParentRoute: () => shell,
  path: "/audit",
  component: later(() => import("./pages/Audit"), "Audit"),
  validateSearch: (s: Record<string, unknown>): { actor?: string; subject?: string } => ({ actor: asText(s.actor), subject: asText(s.subject) }),
});

export const router = createRouter({
  routeTree: root.addChildren([
    login,
    shell.addChildren([overview, devices, device, enrol, rollouts, newRollout, rollout, releases, release, models, model, engines, audit]),
  ]),
  parseSearch,
  stringifySearch,
  scrollRestoration: true,
  defaultPreload: "intent",
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
