// Line charts in SVG: several series over time, gaps where nothing was recorded, values under the pointer or the arrow keys.

import { s, h, clock, fill } from "./dom.js";

const W = 560, H = 168, L = 58, R = 8, T = 8, B = 20;

function niceTop(max) {
  if (!(max > 0)) return 1;
  const p = 10 ** Math.floor(Math.log10(max));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((m) => m * p).find((v) => v >= max * 1.02) || 10 * p;
}
// Bytes read better at powers of 1024.
function niceBytes(max) {
  if (!(max > 0)) return 1024;
  const u = 1024 ** Math.floor(Math.log(max) / Math.log(1024));
  return niceTop(max / u) * u;
}

export class Chart {
  // series: [{name, tone}], format: value -> text
  constructor(title, series, format, opts) {
    Object.assign(this, { title, series, format, opts: opts || {} });
    this.data = series.map(() => []);
    this.now = h("span", { class: "legend" });
    this.svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", tabindex: "0", "aria-label": title });
    this.tip = h("div", { class: "tip", hidden: true });
    this.el = h("figure", { class: "card chart-card" },
      h("figcaption", null, h("span", { class: "card-title" }, title), this.now), h("div", { class: "chart-box" }, this.svg, this.tip));
    this.svg.addEventListener("pointermove", (e) => this.point(e.clientX));
    this.svg.addEventListener("pointerleave", () => this.unpoint());
    this.svg.addEventListener("blur", () => this.unpoint());
    this.svg.addEventListener("keydown", (e) => this.key(e));
    this.draw();
  }

  // data: for each series [[unix, value]], from..to in Unix seconds
  update(data, from, to, step) {
    Object.assign(this, { data, from, to, step });
    this.draw();
    if (this.at !== undefined) this.show(this.at);
  }

  draw() {
    const all = this.data.flat().map((p) => p[1]);
    const max = all.length ? Math.max(...all) : 0;
    const top = this.opts.bytes ? niceBytes(max) : niceTop(Math.max(max, this.opts.least || 0));
    this.y = (v) => T + (H - T - B) * (1 - v / top);
    this.x = (t) => L + (W - L - R) * ((t - this.from) / Math.max(1, this.to - this.from));
    const parts = [];
    for (let i = 0; i <= 2; i++) {
      const v = (top * i) / 2, y = this.y(v).toFixed(1);
      parts.push(s("line", { class: "grid", x1: L, x2: W - R, y1: y, y2: y }),
        s("text", { class: "axis", x: L - 6, y: Number(y) + 3.5, "text-anchor": "end" }, this.format(v)));
    }
    if (this.from) {
      for (let i = 0; i <= 3; i++) {
        const t = this.from + ((this.to - this.from) * i) / 3;
        parts.push(s("text", { class: "axis", x: this.x(t).toFixed(1), y: H - 5, "text-anchor": i === 0 ? "start" : i === 3 ? "end" : "middle" }, clock(t)));
      }
    }
    this.data.forEach((points, i) => parts.push(...this.line(points, this.series[i].tone)));
    if (!all.length) parts.push(s("text", { class: "axis empty", x: (W + L) / 2, y: H / 2, "text-anchor": "middle" }, "nothing recorded yet"));
    this.cross = s("line", { class: "cross", y1: T, y2: H - B, x1: -9, x2: -9 });
    parts.push(this.cross);
    fill(this.svg, parts);
    fill(this.now, this.series.map((x, i) => {
      const last = this.data[i][this.data[i].length - 1];
      return h("span", null, h("i", { class: `swatch ${x.tone}`, "aria-hidden": "true" }), `${x.name} `, h("b", { class: "num" }, last ? this.format(last[1]) : "–"));
    }));
  }

  line(points, tone) {
    const runs = [];
    let last = null;
    for (const p of points) {
      if (last === null || p[0] - last > this.step * 1.5) runs.push([]);
      runs[runs.length - 1].push(p);
      last = p[0];
    }
    const base = this.y(0).toFixed(1);
    return runs.flatMap((run) => {
      const d = run.map((p, i) => `${i ? "L" : "M"}${this.x(p[0]).toFixed(1)} ${this.y(p[1]).toFixed(1)}`).join("");
      const a = this.x(run[0][0]).toFixed(1), b = this.x(run[run.length - 1][0]).toFixed(1);
      if (run.length === 1) return [s("circle", { class: `dot ${tone}`, cx: a, cy: this.y(run[0][1]).toFixed(1), r: 1.6 })];
      return [s("path", { class: `area ${tone}`, d: `${d}L${b} ${base}L${a} ${base}Z` }), s("path", { class: `line ${tone}`, d })];
    });
  }

  times() { return [...new Set(this.data.flat().map((p) => p[0]))].sort((a, b) => a - b); }

  point(clientX) {
    const box = this.svg.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * W;
    const t = this.from + ((x - L) / (W - L - R)) * (this.to - this.from);
    const near = this.times().reduce((best, v) => (best === null || Math.abs(v - t) < Math.abs(best - t) ? v : best), null);
    if (near !== null) this.show(near);
  }

  key(e) {
    const times = this.times();
    const i = times.indexOf(this.at);
    const next = { ArrowLeft: i < 0 ? times.length - 1 : i - 1, ArrowRight: i < 0 ? 0 : i + 1, Home: 0, End: times.length - 1 }[e.key];
    if (e.key === "Escape") return this.unpoint();
    if (next === undefined || !times.length) return;
    e.preventDefault();
    this.show(times[Math.max(0, Math.min(times.length - 1, next))]);
  }

  show(t) {
    this.at = t;
    const x = this.x(t);
    this.cross.setAttribute("x1", x);
    this.cross.setAttribute("x2", x);
    fill(this.tip, h("div", { class: "dim" }, clock(t)), this.series.map((ser, i) => {
      const p = this.data[i].find((q) => q[0] === t);
      return h("div", null, h("i", { class: `swatch ${ser.tone}` }), `${ser.name} `, h("b", { class: "num" }, p ? this.format(p[1]) : "not recorded"));
    }));
    this.tip.hidden = false;
    this.tip.classList.toggle("left", x > W / 2);
    this.tip.style.setProperty("--x", `${(x / W) * 100}%`);
  }

  unpoint() {
    this.at = undefined;
    this.tip.hidden = true;
    this.cross.setAttribute("x1", -9);
    this.cross.setAttribute("x2", -9);
  }
}
