"""What scripts/demo does, step by step; every step says what it shows."""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import attach  # noqa: E402
import build  # noqa: E402
import clean  # noqa: E402
from common import ROOT, TEMP_PREFIX, Failure, read_json, run_main, show_size  # noqa: E402

VOLUME, SIZE, DEVICE_SIZE, VICTIM = "demo", "1GiB", "2GiB", "sds2"
FILES_BYTES, FILES_COUNT = 96 << 20, 1500
FIO_SECONDS, KILL_AT, RETURN_AT = 24, 6, 14
HEAL_SECONDS = 180


def step(text):
    print(f"\n==> {text}", flush=True)


def tell(text):
    print(f"    {text}", flush=True)


class Demo:
    def __init__(self):
        self.work = tempfile.mkdtemp(prefix=os.path.basename(TEMP_PREFIX) + "demo-",
                                     dir=os.path.dirname(TEMP_PREFIX))
        clean.mark_owner(self.work)
        self.dir = os.path.join(self.work, "cluster.d")
        self.mount = os.path.join(self.work, "mnt")
        os.mkdir(self.mount)
        self.bin = self.device = self.fuse = self.fio = self.state = None

    # --- tools

    def cluster(self, *args):
        command = [os.path.join(ROOT, "scripts", "cluster"), *args, "--dir", self.dir]
        tell("$ scripts/cluster " + " ".join(args))
        if subprocess.run(command).returncode:
            raise Failure(f"scripts/cluster {args[0]} failed", "its reason is above")

    def scli(self, *args, show=True):
        """Runs scli, shows the command, gives its JSON answer."""
        if show:
            tell("$ scli " + " ".join(args))
        env = dict(os.environ, QUARRY_API=self.state["api"], QUARRY_TOKEN=self.state["token"])
        command = [os.path.join(self.bin, "scli"), *args, "--json"]
        r = subprocess.run(command, env=env, capture_output=True, text=True)
        if r.returncode:
            raise Failure(f"scli {' '.join(args)}: {r.stderr.strip()}")
        return json.loads(r.stdout)

    # --- steps

    def preflight(self):
        step("Can this host run it?")
        r = subprocess.run([os.path.join(self.bin, "scli"), "doctor", "--dir", self.work,
                            "--socket-dir", TEMP_PREFIX + "01234567"])
        if r.returncode:
            raise Failure("this host cannot run Quarry", "the lines that begin with 'fail' tell")

    def start(self):
        step("A cluster: one metadata manager, three storage servers, one client")
        self.cluster("up", "--sds", "3", "--copies", "2", "--device-size", DEVICE_SIZE)
        self.state = read_json(os.path.join(self.dir, "cluster.json"))

    def attach(self):
        step(f"A volume of {SIZE} with two copies of every block, as a block device")
        self.scli("volume", "create", "--name", VOLUME, "--size", SIZE)
        mapping = ("volume", "map", "--name", VOLUME, "--sdc", "sdc1")
        if attach.kernel_has_nbd():
            try:
                self.device = self.scli(*mapping, "--device").get("device")
            except Failure as e:
                tell(f"the kernel's nbd cannot be used: {e.message}")
        if self.device:
            tell(f"attached by the kernel's nbd driver: {self.device}")
            return
        uri = self.scli(*mapping)["uri"]
        self.fuse = attach.FuseLoop(uri, self.work)
        self.device = self.fuse.attach()
        tell(f"no nbd driver of the kernel: nbdfuse and a loop device instead: {self.device}")
        tell(f"({uri})")

    def mount_it(self):
        attach.run("mount", self.device, self.mount)

    def unmount(self):
        attach.run("umount", self.mount)

    def files(self):
        step("ext4 on it, and real files")
        attach.run("mkfs.ext4", "-q", "-F", self.device)
        self.mount_it()
        sums, total = {}, 0
        target = os.path.join(self.mount, "files")
        for source in real_files():
            data = open(source, "rb").read()
            path = os.path.join(target, source.lstrip("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)
            sums[path] = hashlib.sha256(data).hexdigest()
            total += len(data)
        os.sync()
        tell(f"copied {len(sums)} files, {show_size(total)}")
        self.remount_and_check(sums)
        return sums

    def remount_and_check(self, sums):
        self.unmount()
        attach.run("blockdev", "--flushbufs", self.device)
        self.mount_it()
        wrong = [p for p, s in sums.items() if sha256(p) != s]
        if wrong:
            raise Failure(f"{len(wrong)} files differ after the remount, first {wrong[0]}")
        tell(f"unmounted, mounted again: all {len(sums)} checksums are right")

    def crash(self):
        step(f"fio writes and verifies; {VICTIM} is killed with kill -9 meanwhile")
        result = os.path.join(self.work, "fio.json")
        self.fio = subprocess.Popen([
            "fio", "--name=demo", "--thread", f"--filename={self.mount}/fio", "--size=128M", "--rw=randwrite",
            "--bs=4k", "--iodepth=8", "--ioengine=libaio", "--direct=1", "--verify=crc32c",
            "--verify_backlog=1024", "--verify_fatal=1", "--serialize_overlap=1", "--time_based",
            "--verify_state_save=0",
            f"--runtime={FIO_SECONDS}", "--eta=always", "--eta-newline=2",
            f"--output={result}", "--output-format=json"], stdin=subprocess.DEVNULL,
            cwd=self.work, start_new_session=True)
        self.pause(KILL_AT)
        print(flush=True)
        self.cluster("kill", VICTIM)
        self.pause(RETURN_AT - KILL_AT)
        print(flush=True)
        health = self.scli("status")
        tell(f"health is {health['health']}: {'; '.join(health.get('reasons') or [])}")
        self.cluster("start", VICTIM)
        code = self.fio.wait()
        self.fio = None
        with open(result) as f:
            text = f.read()
        job = json.loads(text[text.index("{"):])["jobs"][0]
        if code or job["error"]:
            raise Failure(f"fio met an error ({job['error']}, status {code})", f"see {result}")
        stall = max(job[k]["clat_ns"]["max"] for k in ("read", "write")) / 1e9
        tell(f"fio: {job['write']['total_ios']} writes, {job['read']['total_ios']} verified reads, "
             f"no I/O error, longest stall {stall:.2f} s")

    def pause(self, seconds):
        """Waits while fio runs; fio ending early is a failure to be looked at."""
        try:
            self.fio.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return
        raise Failure("fio ended early", "its words are above")

    def heal(self):
        step("Healing")
        began, last = time.monotonic(), None
        while True:
            s = self.scli("status", show=False)
            eta = s.get("eta_seconds")
            line = f"{s['health']:<12} {show_size(s.get('bytes_degraded') or 0)} lack a copy" + (
                f", about {eta:.0f} s left" if eta is not None else "")
            if line != last and s["health"] != "ok":
                tell(line)
                last = line
            if s["health"] == "ok":
                tell(f"every block has two copies again, {time.monotonic() - began:.1f} s after fio")
                return
            if time.monotonic() - began > HEAL_SECONDS:
                raise Failure(f"not healed after {HEAL_SECONDS} s", "scli status tells why")
            time.sleep(0.3)

    def check(self, sums):
        step("Is everything still there?")
        self.remount_and_check(sums)
        self.unmount()
        attach.run("e2fsck", "-f", "-n", self.device)
        tell("e2fsck finds nothing wrong")
        self.mount_it()

    def metrics(self):
        step("Metrics for Prometheus")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for m in read_json(os.path.join(self.dir, "cluster.json"))["members"]:
            with opener.open(m["metrics"], timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            count = sum(1 for line in lines if line and not line.startswith("#"))
            tell(f"{m['name']:<6} {m['metrics']}  ({count} values)")

    # --- the end

    def keep(self):
        clean.mark_kept(self.work)
        step("The cluster stays up")
        tell(f"export QUARRY_API={self.state['api']} QUARRY_TOKEN={self.state['token']}")
        tell(f"{self.bin}/scli status          health, and why")
        tell(f"{self.bin}/scli volume list     volumes")
        tell(f"{self.mount}     the file system, on {self.device}")
        tell(f"scripts/cluster kill {VICTIM} --dir {self.dir}     and start, to play")
        tell("to end it:")
        tell(f"  umount {self.mount}" + (f" && losetup -d {self.device} && fusermount3 -u "
                                         f"{self.fuse.directory}" if self.fuse else ""))
        tell(f"  scripts/cluster down --dir {self.dir} --purge && rm -r --one-file-system {self.work}")

    def close(self):
        """Removes everything, as far as it came. Signals are ignored meanwhile."""
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        step("Cleaning up")
        failed = []
        for undo in (self.end_fio, self.unmount_hard, self.detach, self.purge, self.remove):
            try:
                undo()
            except (OSError, Failure, subprocess.SubprocessError) as e:
                # The rest is undone all the same.
                failed.append(f"{undo.__name__}: {e}")
        if failed:
            raise Failure("not everything could be removed: " + "; ".join(failed),
                          "scripts/cluster clean tries again")

    def end_fio(self):
        if self.fio and self.fio.poll() is None:
            # One process (--thread), so this ends its jobs too and the file system is free.
            self.fio.kill()
            self.fio.wait()

    def unmount_hard(self):
        """Unmounts as soon as killed processes have let go; lazily after 10 s."""
        for _ in range(50):
            if not os.path.ismount(self.mount):
                return
            if subprocess.run(["umount", self.mount], capture_output=True).returncode:
                time.sleep(0.2)
        subprocess.run(["umount", "-l", self.mount])

    def detach(self):
        if self.fuse:
            self.fuse.detach()

    def purge(self):
        if os.path.exists(os.path.join(self.dir, "cluster.json")):
            down = [os.path.join(ROOT, "scripts", "cluster"), "down", "--purge", "--dir", self.dir]
            if subprocess.run(down).returncode:
                raise Failure(f"the cluster in {self.dir} did not go down; it stays",
                              f"see above; then scripts/cluster down --purge --dir {self.dir}")

    def remove(self):
        if os.path.exists(os.path.join(self.dir, "cluster.json")):
            # What would end its members is written there.
            return
        clean.release(self.work)
        shutil.rmtree(self.work)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def real_files():
    """Files of this host to copy: programs, libraries, texts, up to a limit."""
    count = total = 0
    for top in (os.path.join(ROOT, "docs"), "/usr/bin", "/usr/share", "/usr/lib"):
        for directory, names, files in os.walk(top):
            names.sort()
            for name in sorted(files):
                path = os.path.join(directory, name)
                if os.path.islink(path) or not os.path.isfile(path) or not os.access(path, os.R_OK):
                    continue
                size = os.path.getsize(path)
                if total + size <= FILES_BYTES and size < 8 << 20:
                    yield path
                    count, total = count + 1, total + size
                if count >= FILES_COUNT:
                    return


def main():
    p = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    p.add_argument("--keep", action="store_true", help="leave the cluster running at the end")
    keep = p.parse_args().keep
    if os.getuid() != 0:
        raise Failure("mounting needs root", "sudo scripts/demo")

    def interrupted(*_):
        raise KeyboardInterrupt
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, interrupted)

    demo, kept = Demo(), False
    try:
        demo.bin = build.binaries()
        demo.preflight()
        demo.start()
        demo.attach()
        sums = demo.files()
        demo.crash()
        demo.heal()
        demo.check(sums)
        demo.metrics()
        if keep:
            demo.keep()
            kept = True
    finally:
        if not kept:
            demo.close()
    step("Done: it survived, and nothing is left behind" if not kept else "Done")


run_main(main)
