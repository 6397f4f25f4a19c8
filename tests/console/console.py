#!/usr/bin/env python3
"""Uses the web console of a running cluster with a headless Chromium, as a person would: sign in, create, map, extend, unmap,
delete, fail and recover, graphs under load, events; refused requests must be shown with code, message and hint, and
never as success. Every step is checked against the API itself.

  console.py --cluster D/cluster.json [--screenshots DIR]"""

import argparse
import json
import os
import sys
import threading
import time

sys.dont_write_bytecode = True
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [here, os.path.join(here, "..", "..", "scripts", "lib")]

from api import Api  # noqa: E402
from common import Failure, run_main  # noqa: E402
from nbd import Nbd  # noqa: E402
from webdriver import Browser, WebDriverError  # noqa: E402

ENTER, TAB, ESCAPE = "\ue007", "\ue004", "\ue00c"
EVIL = "<img src=x onerror=window.broken=1>"


class Test:
    def __init__(self, state, shots):
        self.state, self.shots = state, shots
        self.api = Api(state["api"], state["token"])
        self.b = Browser()
        self.said = 0

    def ok(self, text):
        print(f"  ok    {text}", flush=True)

    def check(self, condition, text):
        if not condition:
            raise Failure(text)
        self.ok(text)

    def shot(self, name):
        if self.shots:
            self.b.screenshot(os.path.join(self.shots, f"{name}.png"))

    def go(self, page):
        self.b.click(f"nav a[data-page={page}]")
        self.b.until(f"page {page}", f"return location.hash === '#/{page}'")

    def row(self, text, act):
        """Clicks a button of the table row that holds `text`."""
        self.b.until(f"a row with {text}", f"""
          const row = [...document.querySelectorAll('tbody tr')].find(r => r.innerText.includes({json.dumps(text)}));
          const b = row && [...row.querySelectorAll('[data-act]')].find(x => x.dataset.act.startsWith({json.dumps(act)}));
          if (b) b.click();
          return Boolean(b) && Boolean(document.querySelector('dialog'));""")

    def submit(self):
        self.b.click("dialog button[type=submit]")

    def succeeded(self, words):
        """The dialog is gone and a message of success with these words is there."""
        self.b.until(f"success: {words}", f"""return !document.querySelector('dialog') &&
          [...document.querySelectorAll('.toast.good')].some(t => t.innerText.includes({json.dumps(words)}))""", 30)

    def refused(self, code):
        """The open dialog shows a refusal with its code, a message and a hint, and no success appeared meanwhile."""
        before = self.b.js("return document.querySelectorAll('.toast.good').length")
        text = self.b.text("dialog .refusal", 30)
        after = self.b.js("return document.querySelectorAll('.toast.good').length")
        self.check(code in text and "Hint:" in text and after <= before,
                   f"refused request is shown as such: {' '.join(text.split())}")
        self.b.keys(ESCAPE)
        self.b.until("the dialog is closed", "return !document.querySelector('dialog')")

    # --- steps

    def sign_in(self):
        self.b.open(self.state["api"] + "/ui")
        self.b.type("#token", "not-the-token")
        self.b.keys(ENTER)
        text = self.b.text(".signin .refusal")
        self.check("wrong_token" in text and "Hint:" in text, "a wrong token is refused with a hint")
        self.b.type("#token", self.state["token"])
        self.b.keys(ENTER)
        self.b.until("the overview", "return document.querySelector('.banner .pill')")
        self.check("ok" in self.b.text(".banner"), "signed in by keyboard; the overview shows health ok")
        want = len(self.state["members"])
        self.go("nodes")
        self.b.until("all nodes", f"return document.querySelectorAll('tbody tr').length >= {want}")
        self.ok(f"{want} nodes are listed")

    def create(self):
        self.go("volumes")
        self.b.click("#create-volume")
        self.b.type("dialog input[name=name]", "bad name!")
        self.b.type("dialog input[name=size]", "1")
        self.submit()
        self.refused("bad_name")
        self.b.click("#create-volume")
        self.b.type("dialog input[name=name]", "web")
        self.b.type("dialog input[name=size]", "256")
        self.b.do("POST", f"/element/{self.b.find('dialog select[name=size_unit]')}/value", {"text": "MiB"})
        self.b.keys(ENTER)
        self.submit_if_open()
        self.succeeded("web")
        volume = self.api.get("/vol/web")
        self.check(volume["size_bytes"] == 256 << 20, "a volume was created and the API has it")
        self.b.click("#create-volume")
        self.b.type("dialog input[name=name]", "web")
        self.b.type("dialog input[name=size]", "2")
        self.submit()
        self.refused("name_taken")

    def submit_if_open(self):
        if self.b.js("const b = document.querySelector('dialog button[type=submit]'); return Boolean(b) && !b.disabled"):
            try:
                self.submit()
            except WebDriverError:
                # Enter had sent it already.
                pass

    def map(self):
        self.row("web", "Map")
        self.submit()
        self.succeeded("mapped")
        mapping = self.api.get("/vol/web")["mappings"]
        self.check(len(mapping) == 1 and mapping[0]["uri"], "mapped, and the API says where")
        self.uri = mapping[0]["uri"]
        self.row("web", "Delete")
        text = self.b.text("dialog .lost")
        self.check("lost" in text and "256 MiB" in text, "deletion says what is lost")
        self.check(self.b.js("return document.querySelector('dialog button[type=submit]').disabled"),
                   "deletion wants the name typed")
        self.b.type("dialog input[name=typed]", "web")
        self.submit()
        self.refused("mapped")

    def extend(self):
        self.row("web", "Extend")
        self.b.type("dialog input[name=size]", "128")
        self.submit()
        self.refused("shrink")
        self.row("web", "Extend")
        self.b.type("dialog input[name=size]", "512")
        self.submit()
        self.succeeded("512 MiB")
        self.check(self.api.get("/vol/web")["size_bytes"] == 512 << 20, "extended while mapped")

    def graphs(self):
        """Load from another thread; the volume's own page must draw what the timeline has."""
        stop = threading.Event()

        def load():
            nbd, block, i = Nbd(self.uri), os.urandom(64 << 10), 0
            while not stop.is_set():
                nbd.write((i * len(block)) % (256 << 20), block)
                nbd.read((i * len(block)) % (256 << 20), len(block))
                i += 1
                time.sleep(0.004)
            nbd.close()
        worker = threading.Thread(target=load)
        worker.start()
        try:
            time.sleep(8 if not self.shots else 25)
            self.b.js("document.querySelector('tbody a[data-act=open]').click()")
            drawn = """return [...document.querySelectorAll('.chart')].filter(c =>
              [...c.querySelectorAll('path.line')].some(p => (p.getAttribute('d').match(/L/g) || []).length >= 2)).length >= 2"""
            self.b.until("graphs with lines", drawn, 30)
            legend = self.b.text("figcaption .legend")
            self.check("write" in legend and any(c.isdigit() for c in legend),
                       f"the volume's graphs show what happens: {' '.join(legend.split())}")
            self.shot("volume")
            self.b.js("document.querySelector('.chart').focus()")
            self.b.keys("\ue012")
            self.check("read" in self.b.text(".tip"), "graphs can be read with the arrow keys")
            self.go("overview")
            self.b.until("the overview's graphs", drawn, 30)
            self.shot("overview")
        finally:
            stop.set()
            worker.join()

    def fail_and_recover(self):
        victim = [m["name"] for m in self.state["members"] if m["role"] == "sds"][-1]
        self.go("servers")
        self.row(victim, "Fail")
        text = self.b.text("dialog .lost")
        self.check("placement group" in text and "web" in text, f"failing names what it means: {' '.join(text.split())[:200]}")
        self.shot("fail")
        self.b.type("dialog input[name=typed]", victim)
        self.submit()
        self.succeeded(victim)
        self.check(self.api.get(f"/sds/{victim}")["state"] == "failed", f"{victim} is failed, says the API too")
        self.go("overview")
        self.b.until("a banner that is not ok", "return !document.querySelector('.banner').classList.contains('good') || document.querySelector('.events').innerText.includes('fail')", 15)
        self.shot("degraded")
        self.go("servers")
        self.row(victim, "Recover")
        self.submit()
        self.succeeded(victim)
        end = time.monotonic() + 90
        while self.api.get("/status")["health"] != "ok":
            if time.monotonic() > end:
                raise Failure("health did not come back to ok")
            time.sleep(0.2)
        self.go("overview")
        self.b.until("the banner is ok again", "return document.querySelector('.banner').classList.contains('good')", 15)
        self.ok("recovered; the overview shows ok again without a reload")

    def escaped(self):
        """Text of the API never becomes markup: a hostile answer is put into the page's own refresh."""
        self.b.js("""const real = window.fetch; window.fetch = async (...a) => {
            const r = await real(...a); if (!String(a[0]).includes('/vol/list')) return r;
            const v = await r.json(); for (const x of v) { x.name = arguments0; x.pool = arguments0; }
            return new Response(JSON.stringify(v), { status: 200 }); };""".replace("arguments0", json.dumps(EVIL)))
        self.go("volumes")
        self.b.until("the hostile name as text", f"return document.querySelector('tbody').innerText.includes({json.dumps(EVIL)})")
        self.check(self.b.js("return !document.querySelector('tbody img') && !window.broken"),
                   "a hostile name is shown as text and runs nothing")
        self.b.do("POST", "/refresh", {})
        self.b.until("the page again", "return document.querySelector('tbody a')")

    def unmap_and_delete(self):
        self.go("volumes")
        self.row("web", "unmap")
        self.check("I/O errors" in self.b.text("dialog .lost") and self.b.js("return !!document.querySelector('dialog input[name=force]')"), "unmapping says what it does")
        self.submit()
        self.succeeded("unmapped")
        self.row("web", "Delete")
        self.b.type("dialog input[name=typed]", "web")
        self.submit()
        self.succeeded("deleted")
        self.check(self.api.call("GET", "/vol/web")[0] == 404, "deleted, and the API does not know it any more")
        self.go("events")
        self.b.until("the deletion among the events", "return document.querySelector('tbody').innerText.includes('web')")
        self.ok("events list what was done")

    def other_pages(self):
        for page in ("pools", "clients", "devices", "servers"):
            self.go(page)
            self.b.until(f"rows on {page}", "return document.querySelectorAll('tbody tr td:not(.empty)').length > 0")
            self.shot(page)
        self.b.keys("/")
        self.check(self.b.js("return document.activeElement.classList.contains('filter')"), "'/' goes to the filter")
        self.b.type(".filter", "no such server")
        self.b.until("no rows", "return document.querySelector('td.empty')")
        before = self.b.js("return document.documentElement.dataset.theme")
        self.b.js("[...document.querySelectorAll('aside button')].find(b => b.innerText.includes('Dark')).click()")
        self.check(self.b.js("return document.documentElement.dataset.theme") != before, "dark and light can be switched")
        self.go("overview")
        self.shot("overview-other-theme")

    def no_answer(self):
        """The API is away: old figures are not passed off as new ones."""
        self.b.js("window.fetch = async () => { throw new TypeError('away'); };")
        self.b.until("the warning", "const s = document.querySelector('.stale'); return s && !s.hidden && s.innerText.includes('no_answer')", 15)
        self.ok("an MDM that does not answer is said, with the time of the figures")
        self.b.do("POST", "/refresh", {})
        self.b.until("the page again", "return document.querySelector('aside button')")
        self.b.js("[...document.querySelectorAll('aside button')].find(b => b.innerText === 'Sign out').click()")
        self.b.find("#token")
        self.check(self.b.js("return sessionStorage.length") == 0, "signing out forgets the token")

    def play(self):
        try:
            for step in (self.sign_in, self.create, self.map, self.extend, self.graphs, self.fail_and_recover,
                         self.escaped, self.other_pages, self.unmap_and_delete, self.no_answer):
                step()
            errors = self.b.console_errors()
            self.check(not errors, f"the page reported no error of its own {errors[:3] or ''}")
        except (WebDriverError, Failure) as e:
            try:
                path = os.path.join(self.shots or "/tmp", f"quarry-console-failed-{os.getpid()}.png")
                self.b.screenshot(path)
                print(f"the page as it was: {path}", file=sys.stderr)
                print("console:", *self.b.console_errors()[:5], sep="\n  ", file=sys.stderr)
            except (OSError, WebDriverError):
                pass
            raise Failure(str(e)) from None
        finally:
            self.b.close()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cluster", required=True)
    p.add_argument("--screenshots")
    a = p.parse_args()
    with open(a.cluster) as f:
        state = json.load(f)
    if a.screenshots:
        os.makedirs(a.screenshots, exist_ok=True)
    Test(state, a.screenshots).play()
    print("console: every step held")


run_main(main)
