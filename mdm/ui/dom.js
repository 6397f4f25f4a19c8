// Building DOM and writing numbers. Text of the API only ever becomes text nodes and attribute values: nothing here, and
// nothing else in the console, parses a string as HTML.

const SVG = "http://www.w3.org/2000/svg";

function build(el, attrs, children) {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith("on")) el.addEventListener(k.slice(2), v);
    else if (v === true) el.setAttribute(k, "");
    else el.setAttribute(k, String(v));
  }
  for (const c of children.flat(9)) {
    if (c === null || c === undefined || c === false) continue;
    el.append(c instanceof Node ? c : document.createTextNode(String(c)));
  }
  return el;
}

export const h = (tag, attrs, ...children) => build(document.createElement(tag), attrs, children);
export const s = (tag, attrs, ...children) => build(document.createElementNS(SVG, tag), attrs, children);

export function fill(el, ...children) {
  el.replaceChildren();
  return build(el, null, children);
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return "–";
  let i = 0;
  let v = Math.abs(n);
  while (v >= 1024 && i < UNITS.length - 1) { v /= 1024; i++; }
  const text = i === 0 ? String(Math.round(v)) : v >= 100 ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toFixed(2);
  return `${n < 0 ? "-" : ""}${text.includes(".") ? text.replace(/\.?0+$/, "") : text} ${UNITS[i]}`;
}

export const perSecond = (n) => (n === null || n === undefined ? "–" : `${bytes(n)}/s`);

export function count(n) {
  if (n === null || n === undefined) return "–";
  if (n >= 1e6) return `${(n / 1e6).toFixed(n >= 1e7 ? 0 : 1)}M`;
  if (n >= 1e4) return `${(n / 1e3).toFixed(n >= 1e5 ? 0 : 1)}k`;
  if (n >= 100 || Number.isInteger(n)) return n.toFixed(0);
  return n >= 10 ? n.toFixed(1) : n.toFixed(2);
}

export function seconds(n) {
  if (n === null || n === undefined) return "unknown";
  if (n < 0.001) return `${(n * 1e6).toFixed(0)} µs`;
  if (n < 1) return `${(n * 1e3).toFixed(n < 0.01 ? 2 : n < 0.1 ? 1 : 0)} ms`;
  if (n < 90) return `${n.toFixed(n < 10 && !Number.isInteger(n) ? 1 : 0)} s`;
  if (n < 5400) return `${Math.round(n / 60)} min`;
  if (n < 172800) return `${(n / 3600).toFixed(1)} h`;
  return `${Math.round(n / 86400)} days`;
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour12: false });
export const day = (iso) => {
  const d = new Date(iso);
  return Number.isNaN(d.getTime()) ? String(iso) : `${d.toLocaleDateString()} ${d.toLocaleTimeString([], { hour12: false })}`;
};
export const plural = (n, one, many) => `${n} ${n === 1 ? one : many || one + "s"}`;

// State words in one place: colour and sign, so that colour is never the only difference.
const STATES = {
  ok: "good", up: "good", done: "good", degraded: "warn", partial: "warn", added: "idle", leaving: "warn", draining: "warn",
  running: "warn", waiting: "warn", idle: "good", cancelled: "warn", down: "bad", removed: "idle", failed: "bad", unavailable: "bad",
};
const SIGNS = { good: "●", warn: "▲", bad: "■", idle: "○" };
export const tone = (state) => STATES[state] || "idle";
export function pill(state, text) {
  const t = tone(state);
  return h("span", { class: `pill ${t}` }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[t]), text || state);
}

export function bar(used, total, marks) {
  const part = total > 0 ? Math.min(1, used / total) : 0;
  const t = part > 0.9 ? "bad" : part > 0.75 ? "warn" : "good";
  const label = `${bytes(used)} of ${bytes(total)} used`;
  const svg = s("svg", { class: `bar ${t}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("rect", { class: "track", width: 100, height: 6 }), s("rect", { class: "fill", width: (part * 100).toFixed(2), height: 6 }));
  return h("div", { class: "usage", title: label }, svg,
    h("span", { class: "num dim" }, `${(part * 100).toFixed(part < 0.1 ? 1 : 0)} % of ${bytes(total)}`, marks));
}
