// Everything the console changes, each behind a dialog that says what happens and what is lost.

import { get, request, settled, idempotencyKey, seg } from "./api.js";
import { form } from "./dialogs.js";
import { h, bytes, plural } from "./dom.js";

const MIB = 2 ** 20;
let refresh = () => {};
export const afterwards = (f) => { refresh = f; };

async function call(method, path, body, told, more) {
  try {
    return await settled(await request(method, path, body, more), told || (() => {}));
  } finally {
    refresh();
  }
}

const list = (...items) => h("ul", null, items.filter(Boolean).map((i) => h("li", null, i)));
const names = (all, most = 8) => all.slice(0, most).join(", ") + (all.length > most ? ` and ${all.length - most} more` : "");

export function createVolume(store) {
  if (!store.pools.length) return createPool(store);
  // The same request sent again has the same key; another one has another.
  const keys = new Map();
  const keyOf = (text) => keys.get(text) || keys.set(text, idempotencyKey()).get(text);
  form({
    title: "Create a volume", button: "Create",
    fields: [
      { name: "name", label: "Name", placeholder: "db-data", maxlength: 63, help: "Letters, digits, dot, dash, underscore; at most 63." },
      { name: "size", label: "Size", type: "size", value: "10", help: "A multiple of 1 MiB." },
      { name: "pool", label: "Pool", type: "select", options: store.pools.map((p) => ({ value: String(p.id), label: `${p.name} · ${p.copies} copies · ${bytes(p.free_bytes)} raw free` })) },
      { name: "provisioning", label: "Provisioning", type: "select", value: "thin", options: [{ value: "thin", label: "Thin: space is taken when it is written" }, { value: "thick", label: "Thick: the whole size is promised now" }] },
    ],
    submit: async (v, told) => {
      const body = { name: v.name, size_bytes: v.size, pool_id: Number(v.pool), provisioning: v.provisioning };
      const made = await call("POST", "/vol/create", body, told, { "Idempotency-Key": keyOf(JSON.stringify(body)) });
      return `Volume ${made.name} of ${bytes(made.size_bytes)} was created`;
    },
  });
}

export function mapVolume(store, v) {
  form({
    title: `Map ${v.name}`, button: "Map", intro: "The client gets the volume as an NBD socket, and as a kernel device where asked for.",
    fields: [
      { name: "sdc", label: "Client (SDC)", type: "select", options: store.sdcs.map((c) => ({ value: String(c.id), label: `${c.name} (${c.state})` })) },
      { name: "device", label: "Attach a kernel device (/dev/nbdN)", type: "check", value: false, help: "Needs the kernel's nbd driver and privileges on the client's host." },
    ],
    submit: async (f, told) => {
      const m = await call("POST", "/vol/map", { volume_id: v.id, sdc_id: Number(f.sdc), device: f.device }, told);
      return `${v.name} is mapped to ${m.sdc || "the client"}${m.device ? ` as ${m.device}` : ""}`;
    },
  });
}

export function unmapVolume(store, v, m) {
  form({
    title: `Unmap ${v.name} from ${m.sdc}`, button: "Unmap",
    danger: list(`${m.sdc} loses ${m.device || "the NBD socket"}.`, "The MDM refuses while it is mounted, open or written to there: unmount it first. With force its users get I/O errors.", "The data stays."),
    fields: [{ name: "force", label: "Force: cut off who uses it", type: "check", value: false }],
    submit: async (f, told) => {
      await call("POST", "/vol/unmap", { volume_id: v.id, sdc_id: m.sdc_id, ...(f.force ? { force: true } : {}) }, told);
      return `${v.name} is unmapped from ${m.sdc}`;
    },
  });
}

export function extendVolume(store, v) {
  form({
    title: `Extend ${v.name}`, button: "Extend", intro: `It has ${bytes(v.size_bytes)} now. Clients see the new size at once; a volume cannot shrink.`,
    fields: [{ name: "size", label: "New size", type: "size", value: String(v.size_bytes % 2 ** 30 ? v.size_bytes / MIB : v.size_bytes / 2 ** 30), unit: v.size_bytes % 2 ** 30 ? "MiB" : "GiB" }],
    submit: async (f, told) => {
      const done = await call("POST", "/vol/extend", { volume_id: v.id, size_bytes: f.size }, told);
      return `${v.name} has ${bytes(done.size_bytes || f.size)} now`;
    },
  });
}

export function deleteVolume(store, v) {
  form({
    title: `Delete ${v.name}`, button: "Delete for ever", typed: v.name,
    danger: list(`All data of ${v.name} (${bytes(v.size_bytes)} in pool ${v.pool}) is lost on every copy. There is no way back.`,
      v.mappings.length ? `It is mapped to ${names(v.mappings.map((m) => m.sdc))}: the MDM refuses until it is unmapped.` : null),
    submit: async (_, told) => {
      await call("DELETE", `/vol/${seg(v.id)}`, undefined, told);
      return `Volume ${v.name} was deleted`;
    },
  });
}

export function createPool(store) {
  const free = store.devices.filter((d) => d.pool_id === null);
  form({
    title: "Create a pool", button: "Create",
    intro: free.length ? `It takes the ${plural(free.length, "unassigned device")} of its protection domain.` : "There are no unassigned devices: the pool waits for servers.",
    fields: [
      { name: "name", label: "Name", placeholder: "fast", maxlength: 63 },
      { name: "copies", label: "Copies", type: "select", value: "2", options: ["1", "2", "3"].map((c) => ({ value: c, label: c === "1" ? "1: a lost device loses data" : c })) },
      { name: "domain", label: "Protection domain", type: "select", options: store.domains.map((d) => ({ value: String(d.id), label: d.name })) },
    ],
    submit: async (v, told) => {
      const p = await call("POST", "/pool/create", { name: v.name, copies: Number(v.copies), protection_domain_id: Number(v.domain) }, told);
      return `Pool ${p.name} was created with ${plural(p.device_ids.length, "device")}`;
    },
  });
}

export function deletePool(store, p) {
  const volumes = store.volumes.filter((v) => v.pool_id === p.id);
  form({
    title: `Delete pool ${p.name}`, button: "Delete pool", typed: p.name,
    danger: list(`Its ${plural(p.device_ids.length, "device")} become free for other pools.`,
      volumes.length ? `It holds ${names(volumes.map((v) => v.name))}: the MDM refuses until they are deleted.` : "It holds no volumes, so no data is lost."),
    submit: async (_, told) => { await call("DELETE", `/pool/${seg(p.id)}`, undefined, told); return `Pool ${p.name} was deleted`; },
  });
}

export function rebuild(store, p, what) {
  const start = what === "start";
  form({
    title: start ? `Rebuild pool ${p.name} now` : `Stop rebuilding pool ${p.name}`, button: start ? "Start" : "Stop",
    intro: start ? "Missing copies are made on other servers at once, without waiting for lost ones to come back." : null,
    danger: start ? null : list(`${bytes(p.status ? p.status.bytes_degraded : 0)} keep fewer copies than asked until their server returns or the rebuild is started again.`),
    // It goes on as a task; the page shows how far it is.
    submit: async () => { await request("POST", `/rebuild/${what}/${seg(p.id)}`, {}); refresh(); return start ? `Rebuild of ${p.name} started` : `Rebuild of ${p.name} stopped`; },
  });
}

// What a server's failure means, from the placement groups as they stand.
async function consequences(store, x) {
  const mine = new Set(store.devices.filter((d) => d.sds_id === x.id).map((d) => d.id));
  const pgs = (await get("/pg/list")).filter((g) => (g.in_sync || []).some((m) => mine.has(m.device ?? m.device_id)));
  const last = pgs.filter((g) => g.in_sync.length === 1);
  const pools = new Set((last.length ? last : pgs).map((g) => g.pool_id));
  const volumes = store.volumes.filter((v) => pools.has(v.pool_id)).map((v) => v.name);
  const held = pgs.reduce((sum, g) => sum + (g.bytes || 0), 0);
  return { groups: pgs.length, last: last.length, volumes, held };
}

export async function failServer(store, x) {
  let c;
  try { c = await consequences(store, x); } catch (e) { c = { groups: 0, last: 0, volumes: [], held: 0, unknown: e.message }; }
  form({
    title: `Fail server ${x.name}`, button: "Fail it", typed: x.name,
    danger: list(
      c.unknown ? `What it holds could not be read: ${c.unknown}` : `${plural(c.groups, "placement group")} (${bytes(c.held)}) lose one copy and are rebuilt on other servers where there is room.`,
      c.last ? `${plural(c.last, "group")} have their only good copy here. The MDM refuses to fail it; with force, data of ${names(c.volumes) || "no volume"} is not available until it is recovered.`
        : c.volumes.length ? `Volumes concerned: ${names(c.volumes)}. They stay available.` : null,
      "Its data is kept: Recover takes it back with what changed meanwhile."),
    fields: c.last ? [{ name: "force", label: "Force: make that data unavailable", type: "check", value: false }] : [],
    submit: async (v, told) => {
      await call("POST", `/sds/${seg(x.id)}/fail`, v.force ? { force: true } : {}, told);
      return `Server ${x.name} is taken out`;
    },
  });
}

export function recoverServer(store, x) {
  form({
    title: `Recover server ${x.name}`, button: "Recover", intro: "It takes part again; its copies are brought up to date with what changed meanwhile.",
    submit: async (_, told) => { await call("POST", `/sds/${seg(x.id)}/recover`, {}, told); return `Server ${x.name} is taken back`; },
  });
}

export function drainServer(store, x) {
  form({
    title: `Drain server ${x.name}`, button: "Drain",
    intro: `Its copies (${bytes(x.used_bytes)}) are moved to other servers while it still serves; nothing has fewer copies at any moment. Afterwards it can be removed.`,
    submit: async (_, told) => {
      // It goes on as a task; the page shows how far it is.
      const r = await request("POST", `/sds/${seg(x.id)}/drain`, {});
      refresh();
      return `Server ${x.name} is being drained${r.value && r.value.task_id ? ` (task ${r.value.task_id})` : ""}`;
    },
  });
}

export function removeServer(store, x) {
  form({
    title: `Remove server ${x.name}`, button: "Remove", typed: x.name,
    danger: list(`${x.name} and its ${plural(x.devices.length, "device")} are forgotten. A server that still holds copies is refused: drain it first, or fail it and let the rebuild end.`),
    submit: async (_, told) => { await call("DELETE", `/sds/${seg(x.id)}`, undefined, told); return `Server ${x.name} was removed`; },
  });
}
