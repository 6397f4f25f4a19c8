"""What scripts/multivm-demo does, step by step; every step says what it shows."""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import build  # noqa: E402
import clean  # noqa: E402
from common import ROOT, TEMP_PREFIX, Failure, run_main, say, show_size, write_atomic  # noqa: E402
from hosts import XSTATE, Guest, Namespace, Network, has_amx  # noqa: E402

MIB = 1 << 20
DISK, VOLUME = 640 * MIB, "256MiB"
API_PORT, CONTROL_PORT = 7400, 7401
# Writes a line with an fsync ten times a second and notes the longest pause; ends with an error on the first I/O error.
WRITER = """import os, time
fd = os.open("/tmp/m/journal", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
n, longest, last = 0, 0.0, time.monotonic()
while not os.path.exists("/tmp/writer.stop"):
    os.write(fd, b"%08d\\n" % n)
    os.fsync(fd)
    now = time.monotonic()
    longest, last, n = max(longest, now - last), now, n + 1
    time.sleep(0.1)
print(n, round(longest, 2))
"""


def step(text):
    print(f"\n==> {text}", flush=True)


def tell(text):
    print(f"    {text}", flush=True)


class Demo:
    def __init__(self, kind, bin_dir):
        self.kind, self.bin = kind, bin_dir
        self.work = tempfile.mkdtemp(prefix=os.path.basename(TEMP_PREFIX) + "multivm-",
                                     dir=os.path.dirname(TEMP_PREFIX))
        clean.mark_owner(self.work)
        self.hosts, self.network = [], None
        self.mounted = False

    # --- tools

    def scli(self, *args, show=True):
        if show:
            tell("$ scli " + " ".join(args))
        command = self.network.inside(os.path.join(self.bin, "scli"), *args, "--json", "--api",
                                      f"http://{self.hosts[0].address}:{API_PORT}", "--token", self.token)
        r = subprocess.run(command, capture_output=True, text=True)
        if r.returncode:
            raise Failure(f"scli {' '.join(args)}: {r.stderr.strip()}")
        return json.loads(r.stdout)

    def until(self, what, done, seconds):
        end, last = time.monotonic() + seconds, None
        while True:
            try:
                good, said = done()
            except Failure as e:
                good, said = False, e.message.splitlines()[0]
            if said and said != last:
                tell(said)
                last = said
            if good:
                return
            if time.monotonic() > end:
                raise Failure(f"waited {seconds} s for {what}; last: {last}")
            time.sleep(0.5)

    def daemon(self, host, program, *args):
        """Starts a daemon on a host; its log is kept on this machine."""
        log = host.inside(host.dir) if self.kind is Namespace else "/run/out"
        argv = [host.inside(os.path.join(self.bin, program)), "--node-config", f"{log}/node.toml",
                "--data-dir", f"{self.data(host)}/{program}", *args]
        host.must(f"mkdir -p {self.data(host)} && setsid nohup {shlex.join(argv)} </dev/null "
                  f">>{log}/{program}.log 2>&1 &")

    def data(self, host):
        """Where a host's daemons keep their own state: on a disk that outlives it, for a host's kernel may not."""
        return "/run/out/state" if self.kind is Guest else os.path.join(host.dir, "state")

    # --- steps

    def boot(self):
        step(f"Four hosts on one machine, each a {self.kind.kind}, on a bridge of their own")
        self.network = Network(f"qmv{os.getpid()}")
        for n in (1, 2, 3, 4):
            began = time.monotonic()
            host = self.kind(n, self.work, self.network, "768M" if n == 1 else "512M", DISK if n < 4 else 0)
            self.hosts.append(host)
            host.start()
            kernel = host.must("uname -r").strip()
            tell(f"{host.name} {host.address}: Linux {kernel}, up in {time.monotonic() - began:.1f} s")

    def install(self):
        step("Quarry on them: MDM and SDS on vm1, SDS on vm2 and vm3, SDC on vm4")
        secret, self.token = secrets.token_hex(32), secrets.token_hex(16)
        for host, caps in zip(self.hosts, (["MDM", "SDS"], ["SDS"], ["SDS"], ["SDC"])):
            here = "/run/out" if self.kind is Guest else host.dir
            lines = {"name": host.name, "addresses": [host.address], "capabilities": caps,
                     "mdm": [f"{self.hosts[0].address}:{CONTROL_PORT}"], "secret_file": f"{here}/secret"}
            write_atomic(os.path.join(host.dir, "node.toml"),
                         "".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items()))
            write_atomic(os.path.join(host.dir, "secret"), secret + "\n", 0o600)
        first = self.hosts[0]
        write_atomic(os.path.join(first.dir, "token"), self.token + "\n", 0o600)
        here = "/run/out" if self.kind is Guest else first.dir
        self.daemon(first, "mdm", "--listen", f"{first.address}:{API_PORT}", "--control",
                    f"{first.address}:{CONTROL_PORT}", "--metrics", f"{first.address}:7402",
                    "--token-file", f"{here}/token")
        for host in self.hosts[:3]:
            self.sds(host)
        self.daemon(self.hosts[3], "sdc-nbd", "--socket-dir", self.sockets(self.hosts[3]), "--metrics",
                    f"{self.hosts[3].address}:7502")

        def registered():
            nodes = self.scli("node", "list", show=False)
            up = sorted(n["name"] for n in nodes if n["state"] == "up")
            return len(up) == 4, f"registered and up: {', '.join(up)}"
        self.until("all nodes", registered, 60)
        self.scli("pool", "create", "--name", "default", "--copies", "2")
        self.healthy(60)

    def sockets(self, host):
        """A short directory of the host's own for sockets, made."""
        path = "/run/q" if self.kind is Guest else os.path.join(self.work, f"s{host.number}")
        host.must(f"mkdir -p {path}")
        return path

    def sds(self, host):
        # Only TCP: on real hosts there is nothing else between them.
        self.daemon(host, "sds-server", "--listen", f"{host.address}:7500", "--no-unix", "--device", host.disk,
                    "--socket-dir", self.sockets(host), "--metrics", f"{host.address}:7501")

    def healthy(self, seconds):
        def ok():
            s = self.scli("status", show=False)
            eta = s.get("eta_seconds")
            return s["health"] == "ok", f"health {s['health']}: {show_size(s['bytes_degraded'])} lack a copy" + (
                f", about {eta} s left" if eta else "")
        self.until("health ok", ok, seconds)

    def use(self):
        step(f"A volume of {VOLUME} with two copies, ext4 on it at vm4, files, and a writer")
        client = self.hosts[3]
        self.scli("volume", "create", "--name", "data", "--size", VOLUME)
        if self.kind is Guest:
            device = self.scli("volume", "map", "--name", "data", "--sdc", client.name, "--device")["device"]
            tell(f"{client.name}: the kernel's nbd driver has it as {device}")
        else:
            device = self.fuse(self.scli("volume", "map", "--name", "data", "--sdc", client.name)["uri"])
        self.device = device
        client.must(f"mkdir -p /tmp/m && mkfs.ext4 -q {device} && mount {device} /tmp/m"
                    if self.kind is Guest else self.own_mount(f"mkfs.ext4 -q -F {device} && mount {device} {self.mnt}"))
        self.mounted = True
        source = shlex.quote(client.inside(ROOT))
        client.must(f"cp -r {source}/libs {source}/docs {self.mnt}/ && cd {self.mnt} && find libs docs -type f "
                    f"-print0 | sort -z | xargs -0 sha256sum >{self.scratch}/sums && sync -f {self.mnt} && "
                    f"wc -l <{self.scratch}/sums")
        tell("files copied, checksums noted")
        script = WRITER.replace("/tmp/m", self.mnt).replace("/tmp/writer", f"{self.scratch}/writer")
        client.must(f"rm -f {self.scratch}/writer.*; cat >{self.scratch}/writer.py <<'END'\n{script}END\n"
                    f"setsid nohup python3 {self.scratch}/writer.py >{self.scratch}/writer.out 2>&1 </dev/null &")

    @property
    def scratch(self):
        return "/tmp" if self.kind is Guest else self.hosts[3].dir

    @property
    def mnt(self):
        return "/tmp/m" if self.kind is Guest else os.path.join(self.work, "mnt")

    def own_mount(self, command):
        """A namespace host has mounts that end with each command; the machine's own stay."""
        os.makedirs(self.mnt, exist_ok=True)
        r = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        if r.returncode:
            raise Failure(f"{command}: {r.stderr.strip()}")
        return "true"

    def fuse(self, uri):
        import attach
        self.loop = attach.FuseLoop(uri, self.work)
        device = self.loop.attach()
        tell(f"no guest, so no nbd driver: nbdfuse and a loop device instead: {device}")
        return device

    def crash(self):
        step("vm3 is switched off under it")
        time.sleep(3)
        began = time.monotonic()
        self.hosts[2].kill()
        tell(f"{self.hosts[2].name} is gone")

        def seen():
            s = self.scli("status", show=False)
            return s["health"] != "ok", f"health {s['health']}: {'; '.join(s['reasons'])[:160]}"
        self.until("the MDM to notice", seen, 20)
        tell(f"noticed after {time.monotonic() - began:.1f} s")
        time.sleep(4)

    def heal(self):
        step("Copies are made anew on the two that are left")
        self.scli("rebuild", "start", "--pool", "default")
        self.healthy(180)

    def look(self, end):
        client = self.hosts[3]
        if end:
            client.must(f"touch {self.scratch}/writer.stop; for i in $(seq 300); do "
                        f"[ -s {self.scratch}/writer.out ] && exit 0; sleep 0.1; done; exit 1", 40)
            said = client.must(f"cat {self.scratch}/writer.out").split()
            if len(said) != 2 or not said[0].isdigit():
                raise Failure(f"the writer met an error: {' '.join(said)}")
            tell(f"the writer made {said[0]} synced writes without an error; longest pause {said[1]} s")
        command = (f"umount {self.mnt} && e2fsck -fn {self.device} && mount {self.device} {self.mnt}")
        if self.kind is Guest:
            client.must(command, 90)
        else:
            self.own_mount(command)
        client.must(f"cd {self.mnt} && sha256sum --quiet -c {self.scratch}/sums", 90)
        tell("unmounted, fsck finds nothing, mounted again: every checksum is right")

    def back(self):
        step("vm3 is switched on again, with its disk")
        host = self.hosts[2]
        host.start()
        self.sds(host)

        def up():
            s = [x for x in self.scli("sds", "list", show=False) if x["name"] == host.name]
            return bool(s) and s[0]["state"] == "up", f"{host.name} is {s[0]['state'] if s else 'unknown'}"
        self.until(f"{host.name} to be up", up, 60)
        self.healthy(180)

    # --- the end

    def close(self):
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        step("Cleaning up")
        failed = []
        for undo in (self.detach, self.power_off, self.remove):
            try:
                undo()
            except (OSError, Failure, subprocess.SubprocessError) as e:
                failed.append(f"{undo.__name__}: {e}")
        if failed:
            raise Failure("not everything could be removed: " + "; ".join(failed))

    def detach(self):
        if self.kind is Namespace and self.mounted:
            subprocess.run(["umount", self.mnt], capture_output=True)
        if hasattr(self, "loop"):
            self.loop.detach()

    def power_off(self):
        for host in self.hosts:
            host.kill()
        if self.network:
            self.network.close()

    def logs(self):
        for host in self.hosts:
            for name in sorted(os.listdir(host.dir)):
                if name.endswith(".log") or name == "console":
                    with open(os.path.join(host.dir, name), errors="replace") as f:
                        lines = f.read().splitlines()[-8:]
                    say("\n".join(f"  {host.name} {name}| {line[:300]}" for line in lines))

    def remove(self):
        clean.release(self.work)
        shutil.rmtree(self.work)

    def play(self):
        self.boot()
        self.install()
        self.use()
        self.crash()
        self.heal()
        step("Is everything there?")
        self.look(end=True)
        self.back()
        self.look(end=False)


def uml_works():
    """Why User-Mode-Linux guests cannot be had, or None."""
    if not shutil.which("linux.uml"):
        return "linux.uml is not installed"
    if has_amx() and not os.path.exists(XSTATE):
        return "this processor has registers (AMX) that the guests' kernel cannot keep"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun for tap devices"
    try:
        net = Network(f"qmvt{os.getpid()}")
    except Failure as e:
        return f"no network namespace can be made: {e.message}"
    try:
        net.tap("probe")
    except Failure as e:
        return f"no tap device can be made: {e.message}"
    finally:
        net.close()
    return None


def main():
    p = argparse.ArgumentParser(prog="scripts/multivm-demo", description=__doc__)
    p.add_argument("--hosts", choices=("uml", "netns"), help="what plays the hosts [uml where it can run]")
    chosen = p.parse_args().hosts
    if os.getuid() != 0:
        raise Failure("network namespaces and mounts need root", "sudo scripts/multivm-demo")
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    why = None if chosen == "netns" else uml_works()
    if why and chosen == "uml":
        raise Failure(why)
    kind = Namespace if chosen == "netns" or why else Guest
    if why:
        say(f"User-Mode-Linux guests cannot run here ({why}): network namespaces play the hosts")
    demo = Demo(kind, build.binaries())
    good = False
    try:
        demo.play()
        good = True
    finally:
        if not good:
            demo.logs()
        demo.close()
    step(f"Done: four hosts ({kind.kind}s), one lost and healed, nothing left behind")


run_main(main)
