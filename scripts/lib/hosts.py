"""Hosts on one machine, for the multi-host demo: User-Mode-Linux guests, or network namespaces. Both hang on a bridge in a
network namespace of their own, run shell commands, and can be killed as a whole."""

import os
import shutil
import signal
import subprocess
import time

import proc
from common import ROOT, Failure, write_atomic

NET = "10.77.0"
BOOT_SECONDS = 90
# Runs what is put into /run/out/todo as N.sh, and answers with N.out and N.rc; the guest's only line to the outside besides its network.
AGENT = """n=0
while :; do
  f=/run/out/todo/$n.sh
  if [ -e $f.ready ]; then
    bash $f >/run/out/todo/$n.out 2>&1 </dev/null
    echo $? >/run/out/todo/$n.rc.new && mv /run/out/todo/$n.rc.new /run/out/todo/$n.rc
    n=$((n+1))
  else
    sleep 0.05
  fi
done
"""


# Processors with AMX have more registers than the guests' kernel can keep; the library says why and makes it work.
XSTATE = os.path.join(ROOT, "scripts", "lib", "uml-xstate.c")


def has_amx():
    with open("/proc/cpuinfo") as f:
        return " amx_tile" in f.read()


def run(*command, check=True):
    r = subprocess.run(command, capture_output=True, text=True)
    if check and r.returncode:
        raise Failure(f"{' '.join(command)}: {(r.stderr or r.stdout).strip()[-400:]}")
    return r.stdout


class Network:
    """A namespace with a bridge; the machine itself is NET.1 in it."""

    def __init__(self, name):
        self.name, self.made = name, []
        run("ip", "netns", "add", name)
        self.made.append(name)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("addr", "add", f"{NET}.1/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")

    def ip(self, *args):
        return run("ip", "-n", self.name, *args)

    def inside(self, *command):
        return ["ip", "netns", "exec", self.name, *command]

    def tap(self, name):
        run(*self.inside("ip", "tuntap", "add", "dev", name, "mode", "tap"))
        self.ip("link", "set", name, "master", "br0")
        self.ip("link", "set", name, "up")

    def host_namespace(self, short, address):
        """A namespace that is a host: one interface, on the bridge."""
        name = f"{self.name}-{short}"
        run("ip", "netns", "add", name)
        self.made.append(name)
        self.ip("link", "add", f"v-{short}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self.ip("link", "set", f"v-{short}", "master", "br0")
        self.ip("link", "set", f"v-{short}", "up")
        for args in (("link", "set", "lo", "up"), ("addr", "add", f"{address}/24", "dev", "eth0"),
                     ("link", "set", "eth0", "up")):
            run("ip", "-n", name, *args)
        return name

    def close(self):
        for name in reversed(self.made):
            run("ip", "netns", "del", name, check=False)
        self.made = []


def descendants(pid):
    """`pid` and everything below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    parents.setdefault(int(f.read().rpartition(")")[2].split()[1]), []).append(int(entry))
            except OSError:
                continue
    out, todo = [], [pid]
    while todo:
        p = todo.pop()
        out.append(p)
        todo += parents.get(p, [])
    return out


def kill_all(pids):
    marked = [(p, proc.start_time(p)) for p in pids]
    for p, started in marked:
        if started:
            proc.send(p, started, signal.SIGKILL)
    for p, started in marked:
        if started:
            proc.wait_gone(p, started, 10)


class Host:
    def __init__(self, number, work):
        self.name, self.address = f"vm{number}", f"{NET}.{10 + number}"
        self.number, self.dir = number, os.path.join(work, f"vm{number}")
        os.makedirs(self.dir, exist_ok=True)

    def must(self, command, seconds=60):
        """A shell command on the host that must succeed; its output."""
        code, out = self.run(command, seconds)
        if code:
            raise Failure(f"{self.name}: `{command[:200]}` ended with {code}: {out.strip()[-800:]}")
        return out


class Guest(Host):
    """A User-Mode-Linux guest whose root is this machine's file system, read-only; /dev/ubdb is its disk."""

    kind = "User-Mode-Linux guest"
    disk = "/dev/ubdb"

    def __init__(self, number, work, network, mem, disk_bytes):
        super().__init__(number, work)
        self.network, self.mem, self.process = network, mem, None
        self.image = os.path.join(self.dir, "disk.img")
        if disk_bytes:
            with open(self.image, "wb") as f:
                f.truncate(disk_bytes)
        else:
            self.image = None
        network.tap(self.name)

    def start(self):
        self.todo = os.path.join(self.dir, "todo")
        shutil.rmtree(self.todo, ignore_errors=True)
        os.makedirs(self.todo)
        self.next = 0
        run_dir = os.path.join(self.dir, "uml")
        shutil.rmtree(run_dir, ignore_errors=True)
        os.makedirs(run_dir)
        init = os.path.join(self.dir, "init")
        write_atomic(init, f"""#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/out /run/root
mount -t hostfs -o {self.dir} none /run/out
mount --bind / /run/root
mount -t tmpfs tmp /tmp
ln -s /proc/self/fd /dev/fd
ip link set lo up
ip addr add {self.address}/24 dev vec0
ip link set vec0 up
insmod $(find /usr/lib/uml/modules -name nbd.ko) nbds_max=4
ulimit -n 20000
cd /tmp
{AGENT}""", 0o755)
        command = ["linux.uml", f"mem={self.mem}", "umid=guest", f"uml_dir={run_dir}", "rootfstype=hostfs",
                   "root=98:0", "rootflags=/", "ro", f"init={init}", "con=null", "con0=null,fd:1", "ssl=null",
                   "quiet", f"vec0:transport=tap,ifname={self.name},depth=128,gro=1"]
        if self.image:
            command.append(f"ubd1={self.image}")
        if has_amx():
            library = os.path.join(run_dir, "xstate.so")
            run("cc", "-O2", "-shared", "-fPIC", "-o", library, XSTATE)
            command = ["env", f"LD_PRELOAD={library}", *command]
        with open(os.path.join(self.dir, "console"), "ab") as log:
            self.process = subprocess.Popen(self.network.inside(*command), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        self.must("true", BOOT_SECONDS)

    def inside(self, path):
        """A path of this machine as the guest sees it: it has a /tmp of its own."""
        return f"/run/root{path}" if path.startswith("/tmp/") else path

    def run(self, command, seconds):
        base = os.path.join(self.todo, str(self.next))
        self.next += 1
        write_atomic(base + ".sh", command + "\n")
        write_atomic(base + ".sh.ready", "")
        end = time.monotonic() + seconds
        while not os.path.exists(base + ".rc"):
            if self.process.poll() is not None:
                raise Failure(f"{self.name} has ended; its console is {self.dir}/console")
            if time.monotonic() > end:
                raise Failure(f"{self.name}: `{command[:200]}` took longer than {seconds} s")
            time.sleep(0.03)
        with open(base + ".rc") as rc, open(base + ".out", errors="replace") as out:
            return int(rc.read() or 1), out.read()

    def kill(self):
        """Power off, without a word to anybody inside."""
        if not self.process:
            return
        pids = descendants(self.process.pid)
        try:
            with open(os.path.join(self.dir, "uml", "guest", "pid")) as f:
                pids += descendants(int(f.read()))
        except (OSError, ValueError):
            pass
        kill_all(dict.fromkeys(pids))
        self.process.wait()
        self.process = None


class Namespace(Host):
    """A network namespace of this machine that plays a host; its disk is a file."""

    kind = "network namespace"

    def __init__(self, number, work, network, _mem, disk_bytes):
        super().__init__(number, work)
        self.disk = os.path.join(self.dir, "disk.img")
        if disk_bytes:
            with open(self.disk, "wb") as f:
                f.truncate(disk_bytes)
        self.ns = network.host_namespace(self.name, self.address)

    def start(self):
        pass

    def inside(self, path):
        return path

    def run(self, command, seconds):
        try:
            with open(os.path.join(self.dir, "output"), "w+") as out:
                # A file, not a pipe: daemons that it leaves running keep it open.
                # Only the network is its own: daemons with copies of this machine's mounts would keep them busy.
                enter = ["nsenter", f"--net=/run/netns/{self.ns}", "bash", "-c", command]
                r = subprocess.run(enter, timeout=seconds, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=out)
                out.seek(0)
                return r.returncode, out.read()
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name}: `{command[:200]}` took longer than {seconds} s") from None

    def kill(self):
        pids = run("ip", "netns", "pids", self.ns, check=False).split()
        kill_all([int(p) for p in pids])
