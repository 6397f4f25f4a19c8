"""A headless Chromium through chromedriver's WebDriver interface, with the standard library alone."""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
# No phoning home: without these flags it looks up hosts that a closed network refuses.
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"]


class WebDriverError(Exception):
    pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Browser:
    def __init__(self, width=1360, height=900):
        self.work = tempfile.mkdtemp(prefix="quarry-chrome-")
        self.port = free_port()
        self.log = open(os.path.join(self.work, "driver.log"), "wb")
        self.driver = subprocess.Popen(["chromedriver", f"--port={self.port}"], stdout=self.log,
                                       stderr=self.log, env=dict(os.environ, HOME=self.work))
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.session = None
        end = time.monotonic() + 30
        while True:
            try:
                if self.call("GET", "/status")["ready"]:
                    break
            except (OSError, WebDriverError):
                pass
            if time.monotonic() > end:
                raise WebDriverError("chromedriver does not start")
            time.sleep(0.1)
        args = FLAGS + [f"--window-size={width},{height}",
                        f"--user-data-dir={os.path.join(self.work, 'profile')}"]
        caps = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": args},
                                "goog:loggingPrefs": {"browser": "ALL"}}}
        self.session = self.call("POST", "/session", {"capabilities": caps}, 60)["sessionId"]

    def call(self, method, path, body=None, timeout=30):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with self.opener.open(request, timeout=timeout) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as e:
            raise WebDriverError(json.loads(e.read())["value"]["message"][:400]) from None

    def do(self, method, path, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def open(self, url):
        self.do("POST", "/url", {"url": url})

    def find_all(self, css):
        return [e[ELEMENT] for e in self.do("POST", "/elements", {"using": "css selector", "value": css})]

    def find(self, css, seconds=15):
        """The first visible element that fits, waited for."""
        end = time.monotonic() + seconds
        while True:
            for e in self.find_all(css):
                try:
                    if self.do("GET", f"/element/{e}/displayed"):
                        return e
                except WebDriverError:
                    # It was redrawn meanwhile.
                    pass
            if time.monotonic() > end:
                raise WebDriverError(f"nothing visible fits '{css}'")
            time.sleep(0.05)

    def text(self, css, seconds=15):
        return self.do("GET", f"/element/{self.find(css, seconds)}/text")

    def click(self, css, seconds=15):
        """Clicks; an element that is redrawn at that moment is looked for again."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.do("POST", f"/element/{self.find(css, seconds)}/click", {})
                return
            except WebDriverError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def type(self, css, text, clear=True):
        e = self.find(css)
        if clear:
            self.do("POST", f"/element/{e}/clear", {})
        self.do("POST", f"/element/{e}/value", {"text": text})

    def keys(self, *presses):
        """Presses keys, one after another, wherever the focus is."""
        actions = [{"type": t, "value": k} for k in presses for t in ("keyDown", "keyUp")]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def js(self, script, *args):
        return self.do("POST", "/execute/sync", {"script": script, "args": list(args)})

    def until(self, what, script, seconds=20):
        """Polls a script until it answers something true; that answer."""
        end = time.monotonic() + seconds
        while True:
            got = self.js(script)
            if got:
                return got
            if time.monotonic() > end:
                shown = self.js("return document.body.innerText").strip()[:1500]
                raise WebDriverError(f"waited {seconds} s for {what}; the page shows:\n{shown}")
            time.sleep(0.1)

    def console_errors(self):
        """What the page itself complained of (refused requests are not the page's fault)."""
        entries = self.do("POST", "/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] == "SEVERE"
                and "Failed to load resource" not in e["message"]]

    def screenshot(self, path):
        data = base64.b64decode(self.do("GET", "/screenshot"))
        with open(path, "wb") as f:
            f.write(data)

    def close(self):
        try:
            if self.session:
                self.do("DELETE", "")
        except (OSError, WebDriverError):
            pass
        self.driver.terminate()
        try:
            self.driver.wait(10)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
        self.log.close()
        shutil.rmtree(self.work, ignore_errors=True)
