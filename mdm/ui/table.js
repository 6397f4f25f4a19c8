// A table whose rows are kept while their content is the same, so that focus and selection survive a refresh.

import { h, fill } from "./dom.js";

const MOST = 500;

export class Table {
  // columns: [{title, cell(row), num}]; key(row) -> id; empty: text or node
  constructor({ columns, key, empty, label }) {
    Object.assign(this, { columns, key, empty });
    this.rows = new Map();
    this.body = h("tbody");
    this.foot = h("div", { class: "dim foot" });
    this.table = h("table", { "aria-label": label }, h("thead", null, h("tr", null, columns.map((c) => h("th", { class: c.num ? "num" : null, scope: "col" }, c.title)))), this.body);
    this.el = h("div", { class: "table-box" }, this.table, this.foot);
  }

  update(rows) {
    const shown = rows.slice(0, MOST);
    const next = new Map();
    const els = shown.map((row) => {
      const k = this.key(row);
      const made = h("tr", { "data-key": k }, this.columns.map((c) => h("td", { class: c.num ? "num" : null }, c.cell(row))));
      const old = this.rows.get(k);
      const same = old && old.html === made.outerHTML;
      next.set(k, same ? old : { el: made, html: made.outerHTML });
      return next.get(k).el;
    });
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    const act = focused && focused.dataset.act;
    const row = focused && focused.closest("tr").dataset.key;
    this.rows = next;
    const now = Array.from(this.body.children);
    if (now.length !== els.length || now.some((e, i) => e !== els[i])) {
      this.body.replaceChildren(...els);
      if (!els.length) this.body.append(h("tr", null, h("td", { class: "empty", colspan: this.columns.length }, this.empty)));
      if (act) {
        const again = Array.from(this.body.querySelectorAll("[data-act]")).find((b) => b.dataset.act === act && b.closest("tr").dataset.key === row);
        if (again) again.focus();
      }
    }
    fill(this.foot, rows.length > MOST ? `${MOST} of ${rows.length} shown: filter to see the others` : null);
  }
}
