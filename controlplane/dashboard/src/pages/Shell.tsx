import { Link, Outlet, useLocation, useNavigate, useRouter } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { fleet, useFleetStream } from "../lib/fleet";
import { dateTime, relative } from "../lib/format";
import { isTyping, useNow, useTitle } from "../lib/hooks";
import { localZoneName, setTheme, setZone, theme, type Theme, zone, zoneName } from "../lib/prefs";
import { signOut, useSession } from "../lib/session";
import { usePart, useStore } from "../lib/store";
import { isUnauthenticated } from "../lib/transport";
import { Bone, Failure } from "../ui/basics";
import { Icon, type IconName } from "../ui/Icon";
import { Menu } from "../ui/Menu";
import { Shortcuts } from "../ui/Shortcuts";
import { toast } from "../ui/toast";

const sections: { to: "/" | "/devices" | "/rollouts" | "/releases" | "/audit"; label: string; icon: IconName; also?: string[] }[] = [
  { to: "/", label: "Overview", icon: "overview" },
  { to: "/devices", label: "Devices", icon: "device", also: ["/enrol"] },
  { to: "/rollouts", label: "Rollouts", icon: "rollout" },
  { to: "/releases", label: "Releases", icon: "release", also: ["/models", "/engines"] },
  { to: "/audit", label: "Audit", icon: "audit" },
];

export function Shell() {
  const session = useSession();
  if (session.isPending) return <Loading />;
  if (session.error && isUnauthenticated(session.error)) {
    return <ToLogin />;
  }
  if (session.error && !session.data) {
    return (
      <main className="login">
        <div className="panel">
          <Failure error={session.error} what="Skein" retry={() => void session.refetch()} />
        </div>
      </main>
    );
  }
  return <Frame />;
}

/** Goes to the login page once, which brings the person back here. */
function ToLogin() {
  const navigate = useNavigate();
  const router = useRouter();
  useEffect(() => {
    const { href, pathname } = router.state.location;
    if (pathname !== "/login") void navigate({ to: "/login", search: { next: href === "/" ? undefined : href }, replace: true });
  }, [navigate, router]);
  return <Loading />;
}

function Loading() {
  return (
    <div className="shell" role="status" aria-label="Loading Skein">
      <div className="side" />
      <div className="main">
        <div className="bar" />
        <div className="page">
          <Bone w={220} h={28} />
          <Bone h={96} />
          <Bone h={260} />
        </div>
      </div>
    </div>
  );
}

function Frame() {
  useFleetStream();
  const { pathname } = useLocation();
  const main = useRef<HTMLElement>(null);
  const [help, setHelp] = useState(false);
  useKeys(() => setHelp(true));

  // A new page takes the focus, as a page load would.
  const firstPath = useRef(pathname);
  useEffect(() => {
    if (firstPath.current === pathname) return;
    firstPath.current = "";
    main.current?.focus({ preventScroll: true });
  }, [pathname]);

  return (
    <div className="shell">
      <a className="skip" href="#main" onClick={(e) => { e.preventDefault(); main.current?.focus(); }}>
        Skip to the content
      </a>
      <aside className="side" aria-label="Sections">
        <Link to="/" className="brand">
          <img src="/favicon.svg" alt="" width={26} height={26} />
          Skein
        </Link>
        <nav className="nav" aria-label="Main">
          {sections.map((s) => (
            <SectionLink key={s.to} section={s} pathname={pathname} />
          ))}
        </nav>
        <Version />
      </aside>
      <div className="main">
        <header className="bar">
          <Link to="/" className="brand" aria-label="Skein, overview">
            <img src="/favicon.svg" alt="" width={26} height={26} />
          </Link>
          <span className="grow" />
          <LiveState />
          <ViewMenu />
          <Account />
          <button type="button" className="btn ghost icon-only" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" onClick={() => setHelp(true)}>
            <Icon name="help" />
          </button>
        </header>
        <main id="main" className="page" ref={main} tabIndex={-1}>
          <Outlet />
        </main>
      </div>
      {help && <Shortcuts onClose={() => setHelp(false)} />}
    </div>
  );
}

function SectionLink({ section, pathname }: { section: (typeof sections)[number]; pathname: string }) {
  const devices = usePart(fleet, (f) => f.status?.devices);
  const under = (p: string) => (p === "/" ? pathname === "/" : pathname === p || pathname.startsWith(`${p}/`));
  const here = under(section.to) || (section.also ?? []).some(under);
  return (
    <Link to={section.to} aria-current={here ? "page" : undefined}>
      <Icon name={section.icon} />
      {section.label}
      {section.to === "/devices" && devices !== undefined && <span className="tail" aria-hidden="true">{devices}</span>}
    </Link>
  );
}

function Version() {
  const v = useSession().data?.serverVersion;
  return <footer>{v && <span className="clip" title={`skeind ${v}`}>skeind {v}</span>}</footer>;
}

/** Says whether what is shown is live, in words too. */
function LiveState() {
  const f = useStore(fleet);
  const now = useNow();
  const z = useStore(zone);
  const words: Record<typeof f.stream, { tone: string; text: string }> = {
    live: { tone: "ok", text: "Live" },
    connecting: { tone: "info", text: "Connecting" },
    retrying: { tone: "warn", text: "Reconnecting" },
    paused: { tone: "off", text: "Paused" },
    ended: { tone: "off", text: "Ended" },
    refused: { tone: "bad", text: "Not live" },
  };
  const w = words[f.stream];
  const age = f.updated ? relative(f.updated, now) : "";
  return (
    <span className="live" title={f.error || (f.updated ? `Last message ${dateTime(f.updated, z)}` : undefined)}>
      <span className={`dot ${w.tone}`} />
      <span role="status">{w.text}</span>
      {f.stream !== "live" && age && <span className="long num">as of {age}</span>}
      <span className="long">{z === "utc" ? "UTC" : localZoneName()}</span>
    </span>
  );
}

function ViewMenu() {
  const t = useStore(theme);
  const z = useStore(zone);
  const icon: IconName = t === "dark" ? "moon" : t === "light" ? "sun" : "system";
  const themes: [Theme, string][] = [["system", "As the system"], ["light", "Light"], ["dark", "Dark"]];
  return (
    <Menu label={<Icon name={icon} />} name="View: theme and time zone" className="btn ghost icon-only" end>
      <fieldset className="plain">
        <legend className="small muted">Theme</legend>
        {themes.map(([key, label]) => (
          <label key={key} className="option">
            <input type="radio" name="theme" checked={t === key} onChange={() => setTheme(key)} />
            {label}
          </label>
        ))}
      </fieldset>
      <fieldset className="plain">
        <legend className="small muted">Times in</legend>
        {(["local", "utc"] as const).map((key) => (
          <label key={key} className="option">
            <input type="radio" name="zone" checked={z === key} onChange={() => setZone(key)} />
            {key === "local" ? `This computer's zone (${zoneName("local")})` : "UTC"}
          </label>
        ))}
      </fieldset>
    </Menu>
  );
}

function Account() {
  const me = useSession().data?.credential;
  const navigate = useNavigate();
  const leave = async () => {
    try {
      await signOut();
      await navigate({ to: "/login", search: {} });
    } catch (e) {
      toast("bad", e instanceof Error ? e.message : "Signing out did not work");
    }
  };
  return (
    <Menu label={<Icon name="user" />} name="Account" className="btn ghost icon-only" end>
      <div className="account">
        <strong>{me?.name || "signed in"}</strong>
        <span className="muted small">
          {me?.role} in tenant {me?.tenant}
        </span>
      </div>
      <button type="button" className="option" onClick={() => void leave()}>
        Sign out
      </button>
    </Menu>
  );
}

/** g then a letter goes somewhere; / searches; ? explains; t changes the theme. */
function useKeys(showHelp: () => void): void {
  const navigate = useNavigate();
  const last = useRef(0);
  useEffect(() => {
    const places: Record<string, (typeof sections)[number]["to"] | "/models" | "/enrol"> = { o: "/", d: "/devices", r: "/rollouts", l: "/releases", m: "/models", a: "/audit", e: "/enrol" };
    const onKey = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey || isTyping(e) || document.querySelector("dialog[open]")) return;
      const place = places[e.key];
      if (place !== undefined && Date.now() - last.current < 1500) {
        last.current = 0;
        e.preventDefault();
        void navigate({ to: place });
      } else if (e.key === "g") {
        last.current = Date.now();
      } else if (e.key === "?") {
        showHelp();
      } else if (e.key === "t") {
        const dark = getComputedStyle(document.body).colorScheme === "dark" || theme.get() === "dark" || (theme.get() === "system" && window.matchMedia("(prefers-color-scheme: dark)").matches);
        setTheme(dark && theme.get() !== "light" ? "light" : "dark");
      } else if (e.key === "/") {
        e.preventDefault();
        const field = document.querySelector<HTMLInputElement>("[data-search]");
        if (field) field.focus();
        else void navigate({ to: "/devices" });
      }
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [navigate, showHelp]);
}

export function NotFound() {
  useTitle("Not found");
  return (
    <main className="state">
      <h1>There is no such page</h1>
      <p>The address may be mistyped, or of another version of Skein.</p>
      <Link to="/" className="btn">
        To the overview
      </Link>
    </main>
  );
}

export function Problem({ error }: { error: unknown }) {
  const stale = error instanceof TypeError && /dynamically imported module|module script/i.test(error.message);
  return (
    <main className="login">
      <div className="panel">
        {stale ? (
          <div className="state">
            <h1>Skein was updated</h1>
            <p>Load the page again to get the new version.</p>
            <button type="button" className="btn primary" onClick={() => window.location.reload()}>Load again</button>
          </div>
        ) : (
          <Failure error={error} what="This page" retry={() => window.location.reload()} />
        )}
      </div>
    </main>
  );
}
