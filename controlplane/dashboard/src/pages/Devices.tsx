import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { createColumnHelper, createSortedRowModel, rowSortingFeature, type SortingState, tableFeatures, useTable } from "@tanstack/react-table";
import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { type RefObject, useEffect, useMemo, useRef, useState } from "react";
import type { Device } from "../gen/skein/fleet/v1/fleet_pb";
import { hardwareLabel, site, stateName, updateName } from "../lib/device";
import { fleet, loadDevices, maxLoaded, useDevices } from "../lib/fleet";
import { count, ms, plural, releaseLabel, targetLabel } from "../lib/format";
import { isTyping, useDebounced, useMedia, useTitle } from "../lib/hooks";
import { useStore } from "../lib/store";
import { useMatching } from "../lib/matching";
import { type DeviceSearch, facetKeys, type FacetKey, sortKeys } from "../router";
import { Ago, Badge, Banner, Bone, Empty, Panel } from "../ui/basics";
import { FacetMenu } from "../ui/FacetMenu";
import { Icon } from "../ui/Icon";

const facetLabels: Record<FacetKey, string> = { state: "State", update: "Update", target: "Target", site: "Site", release: "Release", hardware: "Hardware", condition: "Condition" };

const features = tableFeatures({ rowSortingFeature, sortedRowModel: createSortedRowModel() });
const helper = createColumnHelper<typeof features, Device>();
const byText = (get: (d: Device) => string) => (a: { original: Device }, b: { original: Device }) => get(a.original).localeCompare(get(b.original), "en", { numeric: true });

const columns = helper.columns([
  helper.accessor((d) => d.name || d.id, { id: "name", header: "Device", sortFn: byText((d) => d.name || d.id), cell: (c) => <NameCell device={c.row.original} /> }),
  helper.accessor(stateName, { id: "state", header: "State", sortFn: byText(stateName), cell: (c) => <Badge word={stateName(c.row.original)} /> }),
  helper.accessor(updateName, { id: "update", header: "Update", sortFn: byText(updateName), cell: (c) => <UpdateCell device={c.row.original} /> }),
  helper.accessor((d) => releaseLabel(d.runningReleaseName, d.runningRelease), { id: "release", header: "Release", sortFn: byText((d) => d.runningReleaseName), cell: (c) => <ReleaseCell device={c.row.original} /> }),
  helper.accessor((d) => d.hardware || targetLabel(d.target), { id: "hardware", header: "Hardware", sortFn: byText((d) => d.hardware || d.target), cell: (c) => <div className="clip muted" title={`${c.row.original.hardware} · ${targetLabel(c.row.original.target)}`}>{hardwareLabel(c.row.original.hardware) || targetLabel(c.row.original.target)}</div> }),
  helper.accessor(site, { id: "site", header: "Site", sortFn: byText(site), cell: (c) => <div className="clip">{site(c.row.original) || <span className="muted">–</span>}</div> }),
  helper.accessor((d) => ms(d.lastSeen) ?? 0, { id: "seen", header: "Last seen", sortFn: (a, b) => (ms(b.original.lastSeen) ?? 0) - (ms(a.original.lastSeen) ?? 0), cell: (c) => <Ago at={c.row.original.lastSeen} /> }),
]);

function NameCell({ device: d }: { device: Device }) {
  const worst = d.conditions.find((c) => c.severity === "critical") ?? d.conditions.find((c) => c.severity === "warning");
  return (
    <div className="row">
      <Link to="/devices/$device" params={{ device: d.id }} className="name cover clip">
        {d.name || d.id.slice(0, 8)}
      </Link>
      {worst && <span className={worst.severity === "critical" ? "t-bad" : "t-warn"} title={`${worst.name}: ${worst.message}`}><Icon name="warn" /><span className="sr">{worst.name}</span></span>}
    </div>
  );
}

function UpdateCell({ device: d }: { device: Device }) {
  const word = updateName(d);
  if (word === "settled" && !d.runningRelease && !d.desiredRelease) return <span className="muted">–</span>;
  if (word === "waiting") return <span title={`waits for the ${d.transfer?.waits} of its policy`}><Badge word="waiting" /></span>;
  return <Badge word={word}>{word === "failed" && d.failureClass ? d.failureClass.toLowerCase().replace("_", " ") : word === "converging" && d.step ? d.step : word}</Badge>;
}

function ReleaseCell({ device: d }: { device: Device }) {
  const running = releaseLabel(d.runningReleaseName, d.runningRelease);
  const desired = releaseLabel(d.desiredReleaseName, d.desiredRelease);
  return (
    <div className="clip" title={running === desired ? running : `runs ${running || "nothing"}, wanted ${desired || "nothing"}`}>
      {running || <span className="muted">none</span>}
      {running !== desired && <span className="t-info"> → {desired || "none"}</span>}
    </div>
  );
}

export function Devices() {
  useTitle("Devices");
  useDevices();
  const search = useSearch({ from: "/shell/devices" });
  const navigate = useNavigate({ from: "/devices" });
  const f = useStore(fleet);
  const change = (part: Partial<DeviceSearch>) => void navigate({ search: (s: DeviceSearch) => ({ ...s, ...part }), replace: true, resetScroll: false });
  const { rows, facets, beyond, failure } = useMatching(search);
  const phone = useMedia("(max-width: 820px)");
  const [open, setOpen] = useState(false);
  const chosen = facetKeys.reduce((n, k) => n + (search[k]?.length ?? 0), 0);
  const filtered = Boolean(search.q) || chosen > 0;

  return (
    <>
      <div className="head">
        <div>
          <h1>Devices</h1>
          <p className="sub num" role="status">
            {f.loading === "ready" ? (filtered ? `${count(rows.length)} of ${plural(f.total, "device")}` : plural(f.total, "device")) : f.loading === "failed" ? "Not loaded" : "Loading…"}
          </p>
        </div>
        <div className="actions">
          <Link to="/enrol" className="btn"><Icon name="plus" />Enrol devices</Link>
        </div>
      </div>
      {f.loading === "failed" && (
        <Banner tone="bad">
          <span>The devices could not be loaded. {f.loadError}</span>
          <span><button type="button" className="btn small" onClick={() => void loadDevices()}>Try again</button></span>
        </Banner>
      )}
      {failure && <Banner tone="bad">{failure}</Banner>}
      {beyond && <Banner tone="info">The fleet has {plural(f.total, "device")}; this page holds {count(maxLoaded)}. The list shows what the server finds for the filters, and the figures in the filters count the loaded part.</Banner>}
      <div className="filters">
        <SearchField value={search.q ?? ""} onChange={(q) => change({ q: q || undefined })} />
        {phone && (
          <button type="button" className={`btn ${chosen > 0 ? "chosen" : ""}`} aria-expanded={open} onClick={() => setOpen(!open)}>
            Filters{chosen > 0 ? `: ${chosen}` : ""}
            <Icon name={open ? "up" : "down"} />
          </button>
        )}
        {(!phone || open) && facetKeys.map((key) => (
          <FacetMenu key={key} label={facetLabels[key]} options={facets[key]} chosen={search[key] ?? []} show={key === "target" ? targetLabel : key === "hardware" ? hardwareLabel : undefined} onChange={(v) => change({ [key]: v.length > 0 ? v : undefined })} />
        ))}
        {filtered && (
          <button type="button" className="btn ghost" onClick={() => change({ q: undefined, ...Object.fromEntries(facetKeys.map((k) => [k, undefined])) })}>
            <Icon name="cross" />Clear
          </button>
        )}
      </div>
      {f.loading !== "ready" && rows.length === 0 ? (
        f.loading === "failed" ? null : <LoadingRows />
      ) : rows.length === 0 ? (
        <div className="panel">
          {filtered ? <Empty title="No device matches" icon="search"><p>Take a filter away, or search for a part of a name, id, serial or hardware.</p></Empty> : <Empty title="No devices yet" icon="device"><p>Make a claim token and give it to a device.</p><Link to="/enrol" className="btn primary">Enrol devices</Link></Empty>}
        </div>
      ) : (
        <DeviceTable rows={rows} search={search} change={change} />
      )}
    </>
  );
}

function SearchField({ value, onChange }: { value: string; onChange: (v: string) => void }) {
  const [text, setText] = useState(value);
  const held = useDebounced(text, 150);
  const sent = useRef(value);
  useEffect(() => {
    if (held !== sent.current) {
      sent.current = held;
      onChange(held);
    }
  }, [held, onChange]);
  useEffect(() => {
    if (value !== sent.current) {
      sent.current = value;
      setText(value);
    }
  }, [value]);
  return (
    <div className="search" role="search">
      <Icon name="search" />
      <input data-search="" className="input" type="search" aria-label="Search devices by name, id, serial or hardware" placeholder="Name, id, serial, hardware" value={text} onChange={(e) => setText(e.target.value)} />
      <kbd aria-hidden="true">/</kbd>
    </div>
  );
}

function LoadingRows() {
  return (
    <div className="panel body-pad" role="status" aria-label="Loading devices">
      {Array.from({ length: 12 }, (_, i) => (
        <div key={i} className="bone-row"><Bone w={140} /><Bone w={80} /><Bone w={100} /><Bone w={220} /></div>
      ))}
    </div>
  );
}

function DeviceTable({ rows, search, change }: { rows: Device[]; search: DeviceSearch; change: (s: Partial<DeviceSearch>) => void }) {
  const phone = useMedia("(max-width: 820px)");
  const sorting = useMemo<SortingState>(() => [{ id: search.sort ?? "name", desc: search.dir === "desc" }], [search.sort, search.dir]);
  const table = useTable({ features, columns, data: rows, state: { sorting }, getRowId: (d) => d.id });
  const sorted = table.getRowModel().rows;
  const body = useRef<HTMLDivElement>(null);
  const [margin, setMargin] = useState(0);
  useEffect(() => {
    const measure = () => setMargin(body.current ? body.current.getBoundingClientRect().top + window.scrollY : 0);
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(document.body);
    return () => watch.disconnect();
  }, []);
  const rowHeight = phone ? 92 : 44;
  const virtual = useWindowVirtualizer({ count: sorted.length, estimateSize: () => rowHeight, overscan: 8, scrollMargin: margin, getItemKey: (i) => sorted[i]?.id ?? i });
  useEffect(() => virtual.measure(), [rowHeight, virtual]);
  useRowKeys(body, sorted.length, (i) => virtual.scrollToIndex(i, { align: "auto" }));

  const sortBy = (id: (typeof sortKeys)[number]) => {
    const current = search.sort ?? "name";
    change({ sort: id === "name" ? undefined : id, dir: current === id && search.dir !== "desc" ? "desc" : undefined });
  };

  if (phone) {
    return (
      <Panel title="List" flush tail={<SortSelect search={search} change={change} />}>
        <div ref={body} className="vt-body" role="list" aria-label="Devices" style={{ height: virtual.getTotalSize(), position: "relative" }}>
          {virtual.getVirtualItems().map((v) => {
            const row = sorted[v.index];
            return row && <Card key={row.id} device={row.original} index={v.index} top={v.start - margin} height={rowHeight} total={sorted.length} />;
          })}
        </div>
      </Panel>
    );
  }
  return (
    <div className="panel vt" role="table" aria-label="Devices" aria-rowcount={sorted.length + 1}>
      <div className="vt-head" role="rowgroup">
        {table.getHeaderGroups().map((g) => (
          <div key={g.id} role="row" aria-rowindex={1}>
            {g.headers.map((h) => {
              const id = h.column.id as (typeof sortKeys)[number];
              const active = sorting[0]?.id === id;
              return (
                <div key={h.id} role="columnheader" className={id === "site" ? "opt" : ""} aria-sort={active ? (sorting[0]?.desc ? "descending" : "ascending") : undefined}>
                  <button type="button" onClick={() => sortBy(id)}>
                    <table.FlexRender header={h} />
                    <Icon name={active ? (sorting[0]?.desc ? "down" : "up") : "sort"} className={active ? "" : "faint"} />
                  </button>
                </div>
              );
            })}
          </div>
        ))}
      </div>
      <div ref={body} className="vt-body" role="rowgroup" style={{ height: virtual.getTotalSize() }}>
        {virtual.getVirtualItems().map((v) => {
          const row = sorted[v.index];
          return (
            row && (
              <div key={row.id} role="row" className="vt-row" aria-rowindex={v.index + 2} data-index={v.index} style={{ height: rowHeight, transform: `translateY(${v.start - margin}px)` }}>
                {row.getAllCells().map((c) => (
                  <div key={c.id} role="cell" className={c.column.id === "site" ? "opt" : ""}>
                    <table.FlexRender cell={c} />
                  </div>
                ))}
              </div>
            )
          );
        })}
      </div>
    </div>
  );
}

function Card({ device: d, index, top, height, total }: { device: Device; index: number; top: number; height: number; total: number }) {
  return (
    <div className="card-row" role="listitem" aria-setsize={total} aria-posinset={index + 1} data-index={index} style={{ height, transform: `translateY(${top}px)` }}>
      <div className="row spread"><NameCell device={d} /><Badge word={stateName(d)} /></div>
      <div className="row spread"><ReleaseCell device={d} /><UpdateCell device={d} /></div>
      <div className="row spread small muted"><span className="clip">{[site(d), hardwareLabel(d.hardware) || targetLabel(d.target)].filter(Boolean).join(" · ")}</span><Ago at={d.lastSeen} /></div>
    </div>
  );
}

function SortSelect({ search, change }: { search: DeviceSearch; change: (s: Partial<DeviceSearch>) => void }) {
  return (
    <label className="row small">
      Sort
      <select className="input" value={search.sort ?? "name"} onChange={(e) => change({ sort: sortKeys.find((k) => k === e.target.value && k !== "name"), dir: undefined })}>
        {sortKeys.map((k) => (
          <option key={k} value={k}>{k === "seen" ? "last seen" : k}</option>
        ))}
      </select>
    </label>
  );
}

/** j and k, or the arrows inside the list, move from device to device. */
function useRowKeys(body: RefObject<HTMLDivElement | null>, total: number, show: (index: number) => void): void {
  const showRef = useRef(show);
  showRef.current = show;
  useEffect(() => {
    const onKey = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey || isTyping(e) || document.querySelector("dialog[open]")) return;
      const inside = body.current?.contains(document.activeElement) ?? false;
      const step = e.key === "j" || (inside && e.key === "ArrowDown") ? 1 : e.key === "k" || (inside && e.key === "ArrowUp") ? -1 : 0;
      if (step === 0) return;
      e.preventDefault();
      const now = inside ? Number(document.activeElement?.closest<HTMLElement>("[data-index]")?.dataset.index ?? -1) : -1;
      const next = Math.max(0, Math.min(total - 1, now + step));
      showRef.current(next);
      const focus = (tries: number) => {
        const link = body.current?.querySelector<HTMLElement>(`[data-index="${next}"] a`);
        if (link) link.focus({ preventScroll: true });
        else if (tries > 0) requestAnimationFrame(() => focus(tries - 1));
      };
      focus(10);
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [body, total]);
}
