"""A mapped volume as a block device of this host: the kernel's nbd, or nbdfuse and a loop device."""

import os
import signal
import subprocess
import time

from common import Failure, say


def kernel_has_nbd():
    """Whether the kernel's nbd driver is there, loaded now if need be."""
    if not os.path.exists("/sys/module/nbd"):
        try:
            subprocess.run(["modprobe", "nbd"], capture_output=True)
        except FileNotFoundError:
            pass
    return os.path.exists("/sys/module/nbd") or os.path.exists("/sys/block/nbd0")


def run(*command):
    """A command that must succeed; its output."""
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise Failure(f"{' '.join(command)}: {(r.stderr or r.stdout).strip()[-500:]}")
    return r.stdout.strip()


class FuseLoop:
    """nbdfuse shows the export as a file, a loop device makes it a block device."""

    def __init__(self, uri, work):
        self.directory = os.path.join(work, "fuse")
        self.file = os.path.join(self.directory, "volume")
        self.log = os.path.join(work, "nbdfuse.log")
        self.device = None
        os.makedirs(self.directory, exist_ok=True)
        with open(self.log, "wb") as f:
            self.process = subprocess.Popen(["nbdfuse", self.file, uri], stdin=subprocess.DEVNULL,
                                            stdout=f, stderr=f, start_new_session=True)

    def attach(self):
        deadline = time.monotonic() + 10
        while not os.path.exists(self.file):
            if self.process.poll() is not None or time.monotonic() >= deadline:
                with open(self.log) as f:
                    raise Failure(f"nbdfuse does not serve the volume: {f.read().strip()}")
            time.sleep(0.05)
        self.device = run("losetup", "--find", "--show", "--direct-io=on", self.file)
        return self.device

    def detach(self):
        """Detaches what there is; safe to call at any point."""
        if self.device:
            subprocess.run(["losetup", "-d", self.device], capture_output=True)
            self.device = None
        for _ in range(50):
            if not os.path.ismount(self.directory):
                break
            if subprocess.run(["fusermount3", "-u", self.directory],
                              capture_output=True).returncode:
                time.sleep(0.1)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            say("nbdfuse does not end by itself and is killed")
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
