// The pages. Each makes its elements once and updates them from the store after every refresh.

import { h, s, fill, bytes, perSecond, count, seconds, day, pill, bar, plural, tone } from "./dom.js";
import { timeline } from "./api.js";
import { Chart } from "./chart.js";
import { Table } from "./table.js";
import * as act from "./actions.js";

const SPAN = 300, STEP = 3;
const button = (name, run, cls) => h("button", { class: cls || "small", "data-act": name, onclick: run }, name);
const chips = (all) => h("span", { class: "chips" }, all.map((c) => h("span", { class: "chip" }, c)));
const seen = (x) => (x === null || x === undefined ? "never" : x < 2 ? "now" : `${seconds(Math.round(x))} ago`);
const head = (title, sub, ...tools) => h("header", { class: "page-head" }, h("div", null, h("h1", null, title), sub ? h("p", { class: "dim" }, sub) : null), h("div", { class: "tools" }, tools));

// Operations, bytes and latency of one object, or summed over several of a kind.
class IoCharts {
  constructor(kind, opts) {
    this.kind = kind;
    const pair = [{ name: "read", tone: "read" }, { name: "write", tone: "write" }];
    this.charts = [
      [new Chart("Operations per second", pair, count), ["read_ops", "write_ops"]],
      [new Chart("Throughput", pair, perSecond, { bytes: true }), ["read_bytes", "write_bytes"]],
    ];
    if (!opts || opts.latency !== false) this.charts.push([new Chart("Mean latency", pair, seconds), ["read_latency_seconds", "write_latency_seconds"]]);
    if (opts && opts.more) this.charts.push(...opts.more);
    this.el = h("div", { class: "charts" }, this.charts.map((c) => c[0].el));
  }

  async update(ids) {
    let step = STEP;
    const all = await Promise.all(this.charts.map(([, metrics]) => Promise.all(metrics.map(async (m) => {
      const answers = await Promise.all(ids.map((id) => timeline(this.kind, id, m, SPAN, STEP)));
      step = Math.max(step, ...answers.map((a) => a.step));
      return sum(answers.map((a) => a.points), m);
    }))));
    // One time axis for all of them, up to the newest row of any.
    const to = all.flat(2).reduce((t, p) => Math.max(t, p[0]), 0) || Math.floor(Date.now() / 1000);
    this.charts.forEach(([chart], i) => chart.update(all[i], to - SPAN + step, to, step));
  }
}

// Points of several objects: added up by time; latencies are averaged.
function sum(all, metric) {
  if (all.length === 1) return all[0];
  const at = new Map();
  for (const points of all) for (const [t, v] of points) at.set(t, [...(at.get(t) || []), v]);
  const total = (vs) => vs.reduce((a, b) => a + b, 0);
  const one = metric.endsWith("_seconds") ? (vs) => total(vs) / vs.length : total;
  return [...at].map(([t, vs]) => [t, one(vs)]).sort((a, b) => a[0] - b[0]);
}

const tile = (label, cls) => {
  const value = h("div", { class: "tile-value num" }), note = h("div", { class: "dim" });
  return { el: h("div", { class: `card tile ${cls || ""}` }, h("div", { class: "tile-label" }, label), value, note), set: (v, n) => { fill(value, v); fill(note, n); } };
};

function healthText(st) {
  if (st.health === "ok") return "Every block has all its copies.";
  const bad = st.pools.filter((p) => p.health !== "ok");
  if (bad.length && bad.every((p) => p.waits_for_devices)) return "All data has its copies, but a pool has too few devices to take any yet.";
  if (st.health === "degraded") return `${bytes(st.bytes_degraded)} have fewer copies than asked. Everything is served.`;
  return "Some data cannot be read or written now.";
}

export class Overview {
  constructor() {
    this.banner = h("section", { class: "banner", "aria-live": "polite" });
    this.tiles = { space: tile("Space used"), ops: tile("Operations"), flow: tile("Throughput"), servers: tile("Servers"), volumes: tile("Volumes") };
    this.io = new IoCharts("pool", { more: [[new Chart("Bytes that lack a copy", [{ name: "degraded", tone: "fault" }], bytes, { bytes: true }), ["degraded_bytes"]]] });
    this.events = h("ol", { class: "events" });
    this.el = h("div", null, this.banner, h("div", { class: "tiles" }, Object.values(this.tiles).map((t) => t.el)), this.io.el,
      h("section", { class: "card" }, h("div", { class: "card-head" }, h("span", { class: "card-title" }, "Latest events"), h("a", { href: "#/events" }, "All events")), this.events));
  }

  update(store) {
    const st = store.status;
    const busy = st.bytes_degraded > 0 || st.pools.some((p) => p.pgs_syncing > 0);
    this.banner.className = `banner ${tone(st.health)}`;
    fill(this.banner, h("div", { class: "banner-main" }, pill(st.health), h("div", null, h("h1", null, healthText(st)),
      st.reasons.length ? h("ul", { class: "reasons" }, st.reasons.map((r) => h("li", null, r))) : null)),
    busy ? h("div", { class: "rebuild" }, this.rebuilds(st)) : null);
    const raw = store.pools.reduce((n, p) => n + p.capacity_bytes, 0), used = store.pools.reduce((n, p) => n + p.used_bytes, 0);
    this.tiles.space.set(bytes(used), `of ${bytes(raw)} raw · ${raw ? ((used / raw) * 100).toFixed(1) : 0} %`);
    this.tiles.servers.set(`${st.sds_up} / ${st.sds}`, `up · ${plural(st.sdcs_up, "client")}`);
    this.tiles.volumes.set(st.volumes, `${bytes(store.volumes.reduce((n, v) => n + v.size_bytes, 0))} provisioned`);
    fill(this.events, store.events.slice(-8).reverse().map(eventLine));
    return this.graphs(store);
  }

  rebuilds(st) {
    return st.pools.filter((p) => p.bytes_degraded > 0 || p.pgs_syncing > 0).map((p) => {
      const done = p.bytes > 0 ? Math.max(0, 1 - p.bytes_degraded / p.bytes) : 1;
      return h("div", { class: "rebuild-row" }, h("div", null, h("b", null, `Rebuild of ${p.pool}`), h("span", { class: "dim" }, p.pgs_syncing ? ` · ${plural(p.pgs_syncing, "group")} syncing` : " · waiting for a server")),
        s("svg", { class: "bar warn", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": `${(done * 100).toFixed(0)} percent have all copies` }, s("rect", { class: "track", width: 100, height: 6 }), s("rect", { class: "fill", width: (done * 100).toFixed(1), height: 6 })),
        h("div", { class: "num" }, `${bytes(p.bytes_degraded)} left`, h("span", { class: "dim" }, p.rate_bytes_per_second ? ` at ${perSecond(p.rate_bytes_per_second)}` : ""), ` · time left: ${seconds(p.eta_seconds)}`));
    });
  }

  async graphs(store) {
    if (!store.pools.length) return;
    await this.io.update(store.pools.map((p) => p.id));
    const last = (i, j) => { const d = this.io.charts[i][0].data[j]; return d.length ? d[d.length - 1][1] : null; };
    const both = (i) => (last(i, 0) === null ? null : last(i, 0) + last(i, 1));
    this.tiles.ops.set(both(0) === null ? "–" : `${count(both(0))} /s`, `${count(last(0, 0))} read · ${count(last(0, 1))} write`);
    this.tiles.flow.set(perSecond(both(1)), `${bytes(last(1, 0))} read · ${bytes(last(1, 1))} write`);
  }
}

const eventLine = (e) => h("li", { class: e.outcome === "ok" ? null : "bad" }, h("time", { class: "num dim", datetime: e.time }, day(e.time)),
  h("span", null, h("b", null, e.what), " ", e.object, e.reason ? h("span", { class: "dim" }, ` · ${e.reason}`) : null), h("span", { class: "dim" }, `${e.who}${e.outcome === "ok" ? "" : ` · ${e.outcome}`}`));

// A page that is a filtered table.
class ListPage {
  constructor(title, sub, columns, opts) {
    this.table = new Table({ columns, key: opts.key || ((r) => r.id), empty: opts.empty, label: title });
    this.opts = opts;
    this.filter = h("input", { type: "search", class: "filter", placeholder: "Filter  ( / )", "aria-label": `Filter ${title.toLowerCase()}`, oninput: () => this.show() });
    this.el = h("div", null, head(title, sub, this.filter, opts.tools || []), h("section", { class: "card flush" }, this.table.el));
    this.rows = [];
  }
  update(store) { this.rows = this.opts.rows(store); this.show(); }
  show() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.table.update(words.length ? this.rows.filter((r) => { const text = JSON.stringify(r).toLowerCase(); return words.every((w) => text.includes(w)); }) : this.rows);
  }
}

export function volumes(live) {
  const row = (id) => live().volumes.find((v) => v.id === id);
  return new ListPage("Volumes", "Thin or thick, spread over every device of their pool.", [
    { title: "Name", cell: (v) => h("a", { href: `#/volumes/${v.id}`, "data-act": "open" }, v.name) },
    { title: "Size", num: true, cell: (v) => bytes(v.size_bytes) },
    { title: "Pool", cell: (v) => v.pool },
    { title: "Space", cell: (v) => v.provisioning },
    { title: "Mapped to", cell: (v) => (v.mappings.length ? h("div", { class: "stack" }, v.mappings.map((m) => h("div", { class: "row" }, h("span", null, m.sdc, m.device ? h("code", null, ` ${m.device}`) : null), h("button", { class: "small ghost", "data-act": `unmap ${m.sdc_id}`, "aria-label": `Unmap ${v.name} from ${m.sdc}`, onclick: () => act.unmapVolume(live(), row(v.id), m) }, "Unmap")))) : h("span", { class: "dim" }, "nobody")) },
    { title: "", cell: (v) => h("div", { class: "acts" }, button("Map", () => act.mapVolume(live(), row(v.id))), button("Extend", () => act.extendVolume(live(), row(v.id))), button("Delete", () => act.deleteVolume(live(), row(v.id)), "small danger-text")) },
  ], { rows: (st) => st.volumes, empty: "No volumes yet.", tools: [h("button", { class: "primary", id: "create-volume", onclick: () => act.createVolume(live()) }, "Create volume")] });
}

export class VolumePage {
  constructor(live, id) {
    const more = [[new Chart("Failed requests per second", [{ name: "failed", tone: "fault" }], count, { least: 1 }), ["errors"]]];
    Object.assign(this, { live, id, io: new IoCharts("volume", { more }) });
    this.head = h("div");
    this.facts = h("dl", { class: "facts card" });
    this.el = h("div", null, this.head, this.facts, this.io.el);
  }
  update(store) {
    const v = store.volumes.find((x) => String(x.id) === this.id);
    if (!v) { fill(this.head, head("Volume", "It does not exist (any more).")); fill(this.facts); return null; }
    const made = head(v.name, `Volume ${v.id} in pool ${v.pool}`, ["Map", "Extend", "Delete"].map((n) => h("button", { class: n === "Delete" ? "danger-text" : null, onclick: () => act[`${n.toLowerCase()}Volume`](this.live(), v) }, n)));
    if (!this.head.contains(document.activeElement)) fill(this.head, made);
    fill(this.facts, [["Size", bytes(v.size_bytes)], ["Provisioning", v.provisioning], ["Created", day(v.created)],
      ["Mapped", v.mappings.length ? v.mappings.map((m) => h("div", null, `${m.sdc} `, h("code", null, m.device || m.uri || "not attached yet"))) : "nobody"]].map(([k, x]) => h("div", null, h("dt", null, k), h("dd", null, x))));
    return this.io.update([v.id]);
  }
}

export function pools(live) {
  const row = (id) => live().pools.find((p) => p.id === id);
  return new ListPage("Pools", "Devices of one protection domain that share placement groups.", [
    { title: "Name", cell: (p) => h("b", null, p.name) },
    { title: "Health", cell: (p) => pill(p.health) },
    { title: "Copies", num: true, cell: (p) => p.copies },
    { title: "Used", cell: (p) => bar(p.used_bytes, p.capacity_bytes) },
    { title: "Provisioned", num: true, cell: (p) => [bytes(p.provisioned_bytes), h("div", { class: "dim" }, `limit ${bytes(p.limit_bytes)}`)] },
    { title: "Devices", num: true, cell: (p) => p.device_ids.length },
    { title: "Rebuild", cell: (p) => { const x = p.status; return x && x.bytes_degraded ? h("div", { class: "num" }, `${bytes(x.bytes_degraded)} left`, h("div", { class: "dim" }, `time left: ${seconds(x.eta_seconds)}`)) : h("span", { class: "dim" }, "nothing to do"); } },
    { title: "", cell: (p) => h("div", { class: "acts" }, button("Rebuild now", () => act.rebuild(live(), row(p.id), "start")), button("Stop rebuild", () => act.rebuild(live(), row(p.id), "cancel")), button("Delete", () => act.deletePool(live(), row(p.id)), "small danger-text")) },
  ], { rows: (st) => st.pools.map((p) => ({ ...p, status: st.status.pools.find((x) => x.pool_id === p.id) })), empty: "No pools yet.", tools: [h("button", { class: "primary", onclick: () => act.createPool(live()) }, "Create pool")] });
}

export function servers(live) {
  const row = (id) => live().sds.find((x) => x.id === id);
  return new ListPage("Servers", "SDS daemons: they own devices and keep the copies.", [
    { title: "Name", cell: (x) => h("a", { href: `#/servers/${x.id}`, "data-act": "open" }, x.name) },
    { title: "State", cell: (x) => pill(x.state) },
    { title: "Heard", cell: (x) => seen(x.last_heartbeat_seconds) },
    { title: "Used", cell: (x) => bar(x.used_bytes, x.capacity_bytes) },
    { title: "Devices", num: true, cell: (x) => x.devices.length },
    { title: "Protection domain", num: true, cell: (x) => x.protection_domain_id },
    { title: "", cell: (x) => h("div", { class: "acts" }, x.state === "failed" ? button("Recover", () => act.recoverServer(live(), row(x.id)), "small primary") : [button("Drain", () => act.drainServer(live(), row(x.id))), button("Fail", () => act.failServer(live(), row(x.id)), "small danger-text")],
      x.state === "up" ? null : button("Remove", () => act.removeServer(live(), row(x.id)), "small danger-text")) },
  ], { rows: (st) => st.sds, empty: "No server has registered yet." });
}

export class ServerPage {
  constructor(live, id) {
    const more = [[new Chart("Rebuild traffic sent", [{ name: "sent", tone: "write" }], perSecond, { bytes: true }), ["sync_bytes"]]];
    Object.assign(this, { id, io: new IoCharts("sds", { latency: false, more }) });
    this.head = h("div");
    this.el = h("div", null, this.head, this.io.el);
  }
  update(store) {
    const x = store.sds.find((v) => String(v.id) === this.id);
    if (!x) { fill(this.head, head("Server", "It does not exist (any more).")); return null; }
    fill(this.head, head(x.name, `${x.state} · ${bytes(x.used_bytes)} of ${bytes(x.capacity_bytes)} used · requests at its primaries`, pill(x.state)));
    return this.io.update([x.id]);
  }
}

export function clients() {
  return new ListPage("Clients", "SDC daemons: they turn mapped volumes into block devices.", [
    { title: "Name", cell: (x) => h("b", null, x.name) }, { title: "State", cell: (x) => pill(x.state) },
    { title: "Heard", cell: (x) => seen(x.last_heartbeat_seconds) },
    { title: "Volumes", cell: (x) => x.names.join(", ") || h("span", { class: "dim" }, "none") },
    { title: "Errors", cell: (x) => (x.attachments || []).filter((a) => a.error).map((a) => h("div", { class: "bad-text" }, a.error)) },
  ], { rows: (st) => st.sdcs.map((x) => ({ ...x, names: x.volume_ids.map((id) => (st.volumes.find((v) => v.id === id) || { name: `volume ${id}` }).name) })), empty: "No client has registered yet." });
}

export function devices() {
  return new ListPage("Devices", "Files or block devices that servers keep copies on.", [
    { title: "Id", num: true, cell: (d) => d.id }, { title: "Server", cell: (d) => d.sds }, { title: "Path", cell: (d) => h("code", null, d.path) },
    { title: "State", cell: (d) => [pill(d.state), d.error ? h("div", { class: "bad-text" }, d.error) : null] },
    { title: "Pool", cell: (d) => d.pool || h("span", { class: "dim" }, "unassigned") }, { title: "Used", cell: (d) => bar(d.used_bytes, d.capacity_bytes) },
  ], { rows: (st) => st.devices.map((d) => ({ ...d, pool: (st.pools.find((p) => p.id === d.pool_id) || {}).name })), empty: "No devices yet." });
}

export function nodes() {
  return new ListPage("Nodes", "Hosts with their capabilities, one row each.", [
    { title: "Name", cell: (n) => h("b", null, n.name) }, { title: "State", cell: (n) => pill(n.state) }, { title: "Capabilities", cell: (n) => chips(n.capabilities) },
    { title: "Addresses", cell: (n) => n.addresses.join(", ") }, { title: "Heard", cell: (n) => seen(n.last_heartbeat_seconds) }, { title: "Version", cell: (n) => n.version },
  ], { rows: (st) => st.nodes, empty: "No nodes yet." });
}

export function events() {
  return new ListPage("Events", "Every change and every transition: who, what, when, outcome, reason.", [
    { title: "Time", cell: (e) => h("time", { class: "num", datetime: e.time }, day(e.time)) }, { title: "Who", cell: (e) => e.who }, { title: "What", cell: (e) => h("b", null, e.what) },
    { title: "Object", cell: (e) => e.object }, { title: "Outcome", cell: (e) => (e.outcome === "ok" ? "ok" : pill("failed", e.outcome)) }, { title: "Reason", cell: (e) => e.reason },
  ], { rows: (st) => [...st.events].reverse(), empty: "Nothing has happened yet." });
}

