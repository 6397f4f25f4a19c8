// Dialogs and messages. A dialog closes only when its work has succeeded; a refusal stays in it with code, message and hint.

import { h, fill } from "./dom.js";

export function toast(tone, title, text) {
  const box = document.getElementById("toasts");
  const el = h("div", { class: `toast ${tone}`, role: tone === "bad" ? "alert" : "status" },
    h("div", null, h("b", null, title), text ? h("div", { class: "dim" }, text) : null),
    h("button", { class: "icon", "aria-label": "Dismiss", onclick: () => el.remove() }, "×"));
  box.append(el);
  while (box.children.length > 4) box.firstChild.remove();
  setTimeout(() => el.remove(), tone === "bad" ? 30000 : 8000);
}

export function refusal(e) {
  return h("div", { class: "refusal", role: "alert" },
    h("div", null, h("code", null, e.status ? `${e.status} ${e.code}` : e.code || "error"), " ", h("b", null, e.message)),
    e.hint ? h("div", { class: "dim hint" }, `Hint: ${e.hint}`) : null);
}

let serial = 0;

// fields: [{name, label, type: text|size|select|check|number, value, options, required, help}]
function control(f) {
  const id = `f${++serial}`;
  const label = h("label", { for: id }, f.label);
  const help = f.help ? h("div", { class: "dim help", id: `${id}h` }, f.help) : null;
  const common = { id, name: f.name, required: f.required !== false, "aria-describedby": f.help ? `${id}h` : null };
  if (f.type === "select") {
    const el = h("select", common, f.options.map((o) => h("option", { value: o.value, selected: o.value === f.value }, o.label)));
    return { el: h("div", { class: "field" }, label, el, help), read: () => el.value, focus: el };
  }
  if (f.type === "check") {
    const el = h("input", { id, name: f.name, type: "checkbox", checked: f.value, "aria-describedby": f.help ? `${id}h` : null });
    return { el: h("div", { class: "field check" }, el, label, help), read: () => el.checked, focus: el };
  }
  if (f.type === "size") {
    const n = h("input", { ...common, type: "number", min: "1", step: "any", value: f.value || "10", inputmode: "decimal" });
    const unit = h("select", { "aria-label": "Unit", name: `${f.name}_unit` }, ["MiB", "GiB", "TiB"].map((u) => h("option", { value: u, selected: u === (f.unit || "GiB") }, u)));
    const read = () => Math.round(Number(n.value) * { MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }[unit.value]);
    return { el: h("div", { class: "field" }, label, h("div", { class: "row" }, n, unit), help), read, focus: n };
  }
  const el = h("input", { ...common, type: f.type || "text", value: f.value, placeholder: f.placeholder, autocomplete: "off", spellcheck: "false", min: f.min, max: f.max, maxlength: f.maxlength });
  return { el: h("div", { class: "field" }, label, el, help), read: () => (f.type === "number" ? Number(el.value) : el.value), focus: el };
}

// Opens a form. `submit(values, told)` does the work and resolves with the text of success; `told` says whether anybody still looks.
// danger: text of what is lost; typed: a word to be typed before the button works.
export function form({ title, intro, fields = [], danger, typed, button, submit }) {
  // One at a time: a second click while the first one was being answered opens nothing.
  if (document.querySelector("dialog[open]")) return;
  const before = document.activeElement;
  const controls = fields.map((f) => [f.name, control(f)]);
  const told = h("div", { class: "told", role: "status" });
  const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, button);
  const word = typed ? control({ name: "typed", label: `Type ${typed} to confirm`, required: true }) : null;
  if (word) {
    go.disabled = true;
    word.el.addEventListener("input", () => { go.disabled = word.read() !== typed; });
  }
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const id = `d${++serial}`;
  const body = h("form", { method: "dialog", novalidate: false },
    h("h2", { id }, title), intro ? h("p", { class: "dim" }, intro) : null,
    danger ? h("div", { class: "lost" }, h("b", null, "What this does"), danger) : null,
    controls.map(([, c]) => c.el), word ? word.el : null, told, h("div", { class: "buttons" }, cancel, go));
  const dialog = h("dialog", { "aria-labelledby": id }, body);
  body.addEventListener("submit", async (e) => {
    e.preventDefault();
    if (go.dataset.busy) return;
    go.dataset.busy = "1";
    go.disabled = true;
    fill(told, h("span", { class: "dim" }, "asking the MDM …"));
    const values = Object.fromEntries(controls.map(([n, c]) => [n, c.read()]));
    try {
      const tell = (text) => { fill(told, h("span", { class: "dim" }, text)); return dialog.open; };
      const done = await submit(values, tell);
      dialog.close();
      toast("good", done);
    } catch (err) {
      fill(told, refusal(err));
    } finally {
      delete go.dataset.busy;
      go.disabled = Boolean(word) && word.read() !== typed;
    }
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before && before.isConnected) before.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  // A dangerous dialog begins at its way out.
  const first = word ? word.focus : controls.length ? controls[0][1].focus : danger ? cancel : go;
  first.focus();
  if (first.select) first.select();
}
