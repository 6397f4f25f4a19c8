"""Kernel devices (/dev/nbdN) that belong to a data client."""

import fcntl
import glob
import os

from common import Failure, say

NBD_DISCONNECT = 0xAB08


def attached(socket_dir, pids):
    """Names of nbd devices whose backend identifier or process is one of ours."""
    found = []
    for path in sorted(glob.glob("/sys/block/nbd*")):
        def read(name, path=path):
            try:
                with open(os.path.join(path, name)) as f:
                    return f.read().strip()
            except OSError:
                return ""
        pid = read("pid")
        if pid and (socket_dir in read("backend") or (pid.isdigit() and int(pid) in pids)):
            found.append(os.path.basename(path))
    return found


def mounted_at(name):
    with open("/proc/self/mounts") as f:
        return [line.split()[1] for line in f if line.split()[0] == f"/dev/{name}"]


def detach_all(socket_dir, pids):
    """Detaches our devices; refuses when one is mounted, before anything is done."""
    devices = attached(socket_dir, pids)
    for name in devices:
        where = mounted_at(name)
        if where:
            raise Failure(f"/dev/{name} is mounted at {where[0]}", f"umount {where[0]}", 4)
    for name in devices:
        fd = os.open(f"/dev/{name}", os.O_RDWR)
        try:
            fcntl.ioctl(fd, NBD_DISCONNECT)
            say(f"detached /dev/{name}")
        finally:
            os.close(fd)
