// Sign-in, navigation, and the refresh that everything on the page is drawn from.

import { h, fill, pill, clock } from "./dom.js";
import { get, token, signIn, signOut, whenSignedOut, ApiError } from "./api.js";
import { refusal } from "./dialogs.js";
import * as views from "./views.js";
import * as actions from "./actions.js";

const EVERY = 2000;
const MAX_EVENTS = 5000;
const NAV = [["overview", "Overview"], ["volumes", "Volumes"], ["pools", "Pools"], ["servers", "Servers"], ["clients", "Clients"], ["devices", "Devices"], ["nodes", "Nodes"], ["events", "Events"]];

const app = document.getElementById("app");
const store = { status: null, pools: [], volumes: [], sds: [], sdcs: [], devices: [], nodes: [], domains: [], events: [] };
const live = () => store;
let shell = null, page = null, timer = null, running = false, again = false;

// --- theme: as the system says, unless chosen here

function theme(next) {
  if (next) localStorage.setItem("quarry-theme", next);
  const chosen = localStorage.getItem("quarry-theme");
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  return dark;
}

// --- sign-in

function welcome(error) {
  clearTimeout(timer);
  shell = page = null;
  const input = h("input", { id: "token", name: "token", type: "password", autocomplete: "current-password", required: true, "aria-describedby": "where" });
  const told = h("div", { class: "told", role: "status" }, error ? refusal(error) : null);
  const go = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h("form", { class: "card signin" }, h("div", { class: "brand big" }, h("img", { src: "/ui/icon.svg", alt: "", width: 34, height: 34 }), "Quarry"),
    h("label", { for: "token" }, "Token of the API"), input, h("p", { id: "where", class: "dim" }, "It is in the MDM's token file. It stays in this tab only."), told, go);
  form.addEventListener("submit", async (e) => {
    e.preventDefault();
    go.disabled = true;
    signIn(input.value.trim());
    try {
      store.status = await get("/status");
      start();
    } catch (err) {
      // A wrong token has brought a new form with the reason already.
      sessionStorage.removeItem("quarry-token");
      fill(told, refusal(err));
      go.disabled = false;
      input.select();
    }
  });
  fill(app, h("main", { id: "main", class: "center" }, form));
  input.focus();
}

// --- frame

function frame() {
  const health = h("span", { id: "health" }), fresh = h("span", { class: "dim num", id: "fresh" });
  const stale = h("div", { class: "stale", role: "alert", hidden: true });
  const toggle = h("button", { class: "ghost", onclick: () => { theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); } }, "Dark / light");
  const nav = h("nav", { "aria-label": "Pages" }, NAV.map(([id, text]) => h("a", { href: `#/${id}`, "data-page": id }, text)));
  const main = h("main", { id: "main", tabindex: "-1" });
  fill(app, h("div", { class: "shell" },
    h("aside", null, h("div", { class: "brand" }, h("img", { src: "/ui/icon.svg", alt: "", width: 26, height: 26 }), "Quarry"), nav,
      h("div", { class: "aside-foot" }, toggle, h("button", { class: "ghost", onclick: () => signOut(null) }, "Sign out"))),
    h("div", { class: "body" }, h("div", { class: "topbar" }, health, h("span", { class: "dim", id: "cluster" }), fresh), stale, main)));
  return { health, fresh, stale, nav, main };
}

function route() {
  const [name, id] = location.hash.replace(/^#\//, "").split("/");
  const make = {
    overview: () => new views.Overview(), volumes: () => (id ? new views.VolumePage(live, id) : views.volumes(live)), pools: () => views.pools(live),
    servers: () => (id ? new views.ServerPage(live, id) : views.servers(live)), clients: views.clients, devices: views.devices, nodes: views.nodes, events: views.events,
  };
  const known = Object.hasOwn(make, name) ? name : "overview";
  page = make[known]();
  for (const a of shell.nav.children) {
    if (a.dataset.page === known) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  document.title = `Quarry · ${NAV.find((n) => n[0] === known)[1]}`;
  fill(shell.main, page.el);
  if (store.status) draw();
  refresh();
}

// --- refresh

function draw() {
  fill(shell.health, pill(store.status.health));
  document.getElementById("cluster").textContent = `cluster ${store.status.cluster_id.slice(0, 8)}`;
  const later = page.update(store);
  if (later) later.catch(trouble);
}

function trouble(e) {
  if (!shell || e.status === 401) return;
  shell.stale.hidden = false;
  fill(shell.stale, refusal(e instanceof ApiError ? e : { code: "console", message: String(e), hint: "this is a defect of the console" }), h("div", { class: "dim" }, `What is shown is as of ${shell.fresh.textContent || "some time ago"}.`));
}

async function load() {
  const since = store.events.length ? store.events[store.events.length - 1].id : 0;
  const [status, pools, volumes, sds, sdcs, devices, nodes, domains, events] = await Promise.all(
    ["/status", "/pool/list", "/vol/list", "/sds/list", "/sdc/list", "/device/list", "/cluster/nodes", "/pd/list", `/events?since=${since}`].map(get));
  Object.assign(store, { status, pools, volumes, sds, sdcs, devices, nodes, domains });
  store.events = [...store.events, ...events.filter((e) => e.id > since)].slice(-MAX_EVENTS);
}

async function refresh() {
  if (running) { again = true; return; }
  clearTimeout(timer);
  running = true;
  try {
    do {
      again = false;
      await load();
    } while (again);
    if (!shell) return;
    shell.stale.hidden = true;
    shell.fresh.textContent = clock(Date.now() / 1000);
    draw();
  } catch (e) {
    trouble(e);
  } finally {
    running = false;
    if (shell) timer = setTimeout(refresh, document.hidden ? EVERY * 5 : EVERY);
  }
}

function start() {
  shell = frame();
  route();
}

document.addEventListener("keydown", (e) => {
  const typing = e.target.closest && e.target.closest("input, select, textarea, dialog");
  if (e.key === "/" && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) {
    const f = document.querySelector(".filter");
    if (f) { e.preventDefault(); f.focus(); }
  }
});
document.querySelector(".skip").addEventListener("click", (e) => { e.preventDefault(); document.getElementById("main").focus(); });
addEventListener("hashchange", () => { if (shell) { route(); scrollTo(0, 0); shell.main.focus({ preventScroll: true }); } });
whenSignedOut((why) => { store.events = []; store.status = null; welcome(why); });
actions.afterwards(refresh);
theme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
if (token()) start(); else welcome(null);
