"""`scripts/cluster up`: from nothing, or from a stopped cluster, to health `ok`."""

import os
import shutil
import time

import layout
from api import Api
from common import Failure, say, show_size

UP_SECONDS = 60
PAUSE = 0.1
DEFAULT = "default"


def check_options(o):
    """Refuses what cannot work before anything is made."""
    if o.mdm != 1:
        raise Failure("one MDM is what this release runs", "--mdm 1", 2)
    if o.sds < 1 or o.sdc < 0:
        raise Failure("at least one SDS is needed", "--sds 3", 2)
    if not 1 <= o.copies <= 3:
        raise Failure(f"--copies {o.copies} is not 1, 2 or 3", "--copies 2", 2)
    if o.copies > o.sds:
        raise Failure(f"{o.copies} copies want {o.copies} SDS, there are {o.sds}",
                      f"--sds {o.copies}", 2)
    if o.device_size < 64 << 20 or o.device_size % (1 << 20):
        raise Failure(f"--device-size {o.device_size} is not a multiple of 1 MiB from 64 MiB on",
                      "--device-size 4GiB", 2)


def up(cluster, options, bin_dir):
    """Brings the cluster up; a failure leaves nothing running but what ran before."""
    ran = []
    known = cluster.exists()
    if known:
        cluster.load()
        ran = [m for m in cluster.members if cluster.running(m)]
        _say_what_differs(cluster.state, options)
        _again(cluster, bin_dir)
    else:
        _first(cluster, options, bin_dir)
    try:
        _start(cluster, known)
    except BaseException:
        if ran:
            cluster.stop([m for m in cluster.members if m not in ran])
        else:
            cluster.stop_all()
        raise


def _say_what_differs(state, options):
    """A cluster that exists keeps its shape, whatever is asked for now."""
    count = lambda role: sum(m["role"] == role for m in state["members"])
    is_now = {"--mdm": count("mdm"), "--sds": count("sds"), "--sdc": count("sdc"), "--copies": state["copies"],
              "--device-size": show_size(state["device_size"]), "--ack": state["ack"]}
    asked = {"--mdm": options.mdm, "--sds": options.sds, "--sdc": options.sdc, "--copies": options.copies,
             "--device-size": show_size(options.device_size), "--ack": options.ack}
    # An option left out has its default: what differs from both was asked for.
    default = {"--mdm": 1, "--sds": 3, "--sdc": 1, "--copies": 2, "--device-size": "4 GiB", "--ack": "durable"}
    other = [f"{k} {is_now[k]}, not {v}" for k, v in asked.items() if v not in (is_now[k], default[k])]
    if other:
        say(f"the cluster is there already and keeps its shape: {'; '.join(other)} (down --purge begins anew)")


def _first(cluster, options, bin_dir):
    directory = cluster.directory
    if not os.path.isdir(options.backing):
        os.makedirs(options.backing)
        made = True
    else:
        made = False
    before = set(os.listdir(directory))
    try:
        cluster.state = layout.plan(directory, options, bin_dir)
        cluster.state["backing_made"] = made
        layout.write_settings(directory, cluster.state)
        layout.make_devices(cluster.state)
    except BaseException:
        if made:
            shutil.rmtree(options.backing, ignore_errors=True)
        # So that it can be tried again.
        for name in set(os.listdir(directory)) - before - {"cluster.json"}:
            path = os.path.join(directory, name)
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.unlink(path)
        raise
    cluster.save()


def _again(cluster, bin_dir):
    """The same members with their data; new ports if somebody took the old ones meanwhile."""
    say(f"starting the cluster in {cluster.directory} again, with its data")
    state = cluster.state
    for m in cluster.members:
        for path in m["devices"]:
            if not os.path.exists(path):
                raise Failure(f"{m['name']}'s device {path} is gone",
                              "bring it back, or scripts/cluster down --purge and begin anew")
    if any(cluster.running(m) for m in cluster.members):
        cluster.save()
        return
    # What was killed from outside is still written down as running; it has not failed to start now.
    for m in cluster.members:
        m["pid"] = m["start_time"] = None
    if not all(layout.port_free(p) for p in layout.ports_of(state)):
        say("a port is taken by somebody else; the cluster moves to new ones")
        layout.assign(cluster.directory, state, bin_dir)
    elif state["bin_dir"] != bin_dir:
        state["bin_dir"] = bin_dir
        for m in cluster.members:
            m["command"] = layout.command(cluster.directory, state, m, bin_dir)
    layout.write_settings(cluster.directory, state)
    cluster.save()


def _start(cluster, known):
    """A cluster that is known may be up and still mend itself, or lack what nobody here can start."""
    began = time.monotonic()
    wait = Wait(cluster, began + UP_SECONDS)
    layout.make_socket_dirs(cluster.state, cluster.directory)
    for m in cluster.of_role("mdm"):
        cluster.start(m)
    api = Api(cluster.state["api"], cluster.state["token"])
    wait.until("the MDM to answer", lambda: _answers(api))
    for m in cluster.of_role("sds") + cluster.of_role("sdc"):
        cluster.start(m)
    wait.until("all members to register", lambda: _registered(cluster, api))
    wait.until("all devices to be open", lambda: _open(api))
    _ensure_pool(cluster, api)
    try:
        wait.until("health to be ok", lambda: _well(api))
        how = "ok"
    except Failure:
        how = _healthy(api)[len("health is "):] or "ok"
        if not known or not how.startswith(("ok", "degraded")) or _failed(api):
            raise
    _ids(cluster, api)
    cluster.save()
    say(f"up in {time.monotonic() - began:.1f} s: health {how}")


class Wait:
    """Polls conditions up to one deadline; says which one was missing, and what the logs say."""

    def __init__(self, cluster, deadline):
        self.cluster, self.deadline = cluster, deadline

    def until(self, what, done):
        last = ""
        while True:
            missing = done()
            if not missing:
                return
            last = missing
            for m in self.cluster.members:
                if m["pid"]:
                    self.cluster.check(m)
            if time.monotonic() >= self.deadline:
                logs = "\n".join(self.cluster.explain(m) for m in self._suspects(last))
                raise Failure(f"waited {UP_SECONDS} s for {what}: {last}\n{logs}",
                              f"logs are in {self.cluster.directory}/log")
            time.sleep(PAUSE)

    def _suspects(self, text):
        named = [m for m in self.cluster.members if m["name"] in text]
        return named or self.cluster.members


# Conditions: an empty string when met, else what is missing.

def _answers(api):
    try:
        status, _ = api.call("GET", "/", timeout=2)
    except OSError as e:
        return f"{api.url}: {e}"
    return "" if status < 500 else f"it answers with HTTP status {status}"


def _registered(cluster, api):
    status, nodes = api.call("GET", "/cluster/nodes")
    if status != 200 or not isinstance(nodes, list):
        return f"/cluster/nodes answers with HTTP status {status}"
    known = {n.get("name") for n in nodes}
    sds = api.call("GET", "/sds/list")[1] or []
    ready = {s.get("name") for s in sds} | {m["name"] for m in cluster.of_role("sdc")}
    want = [m["name"] for m in cluster.of_role("sds") + cluster.of_role("sdc")]
    missing = [n for n in want if n not in known or n not in ready]
    return f"{', '.join(missing)} not registered" if missing else ""


def _open(api):
    """A pool made before its devices are open would begin with copies missing."""
    status, devices = api.call("GET", "/device/list")
    if status != 200 or not isinstance(devices, list):
        return f"/device/list answers with HTTP status {status}"
    return ", ".join(f"{d.get('sds')}: {d.get('path')} is opening" for d in devices if d.get("state") == "opening")


def _healthy(api):
    status, answer = api.call("GET", "/status")
    if not isinstance(answer, dict) or "health" not in answer:
        return f"/status answers with HTTP status {status}"
    if answer["health"] == "ok":
        return ""
    reasons = "; ".join(answer.get("reasons") or []) or "no reason given"
    return f"health is {answer['health']}: {reasons}"


def _well(api):
    """Health is ok. By a device that has failed it will not become so: nobody need wait for it."""
    missing = _healthy(api)
    for d in _failed(api) if missing else []:
        raise Failure(f"{d.get('sds')}'s device {d.get('path')} has failed: {d.get('error')}",
                      "what it says is in the log of that server; `sds-server check` reads the device itself")
    return missing


def _failed(api):
    devices = api.call("GET", "/device/list")[1]
    return [d for d in devices if d.get("state") == "failed"] if isinstance(devices, list) else []


def _named(api, path):
    """The object `default` of a kind, or None."""
    listed = api.get(f"/{path}/list?name={DEFAULT}") or []
    return next((o for o in listed if o.get("name") == DEFAULT), None)


def _ensure_pool(cluster, api):
    """The protection domain and the pool, made when they are missing."""
    domain = _named(api, "pd") or api.post("/pd/create", {"name": DEFAULT})
    if _named(api, "pool"):
        return
    state = cluster.state
    api.post("/pool/create", {"name": DEFAULT, "protection_domain_id": domain["id"],
                              "copies": state["copies"], "ack": state["ack"]})
    say(f"pool '{DEFAULT}': {state['copies']} copies, ack {state['ack']}, "
        f"{len(cluster.of_role('sds'))} SDS of {show_size(state['device_size'])}")


def _ids(cluster, api):
    """Ids as the MDM gave them, and the cluster's."""
    for role in ("sds", "sdc"):
        by_name = {o.get("name"): o.get("id") for o in api.call("GET", f"/{role}/list")[1] or []}
        for m in cluster.of_role(role):
            m["id"] = by_name.get(m["name"], m["id"])
    for path in ("/status", "/"):
        answer = api.call("GET", path)[1]
        if isinstance(answer, dict) and answer.get("cluster_id"):
            cluster.state["cluster_id"] = answer["cluster_id"]
            return
