"""Kernel devices (/dev/nbdN) that belong to a data client."""

import glob
import os
import re
import socket
import struct
import time

from common import Failure, say

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NBD_CMD_DISCONNECT, NBD_ATTR_INDEX = 2, 1
NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 1, 4, 2
# The kernel ends what is in flight before it answers.
PATIENCE = 30


def _read(name, what):
    try:
        with open(f"/sys/block/{name}/{what}") as f:
            return f.read().strip()
    except OSError:
        return ""


def attached(cluster_id):
    """Names of the connected nbd devices of a cluster's volumes: their backend identifier begins with it."""
    names = [os.path.basename(p) for p in sorted(glob.glob("/sys/block/nbd*"))]
    ours = f"quarry:{cluster_id}:"
    return [n for n in names if cluster_id and _read(n, "pid") and _read(n, "backend").startswith(ours)]


def mounted_at(name):
    with open("/proc/self/mounts") as f:
        rows = [line.split() for line in f]
    return [r[1] for r in rows if re.fullmatch(f"/dev/{name}(p\\d+)?", r[0])]


def refuse_mounted(cluster_id):
    for name in attached(cluster_id):
        where = mounted_at(name)
        if where:
            raise Failure(f"/dev/{name} is mounted at {where[0]}", f"umount {where[0]}", 4)


def detach_all(cluster_id):
    """Detaches a cluster's devices. Its clients have to be gone: they would connect them again."""
    for name in attached(cluster_id):
        try:
            disconnect(int(name.removeprefix("nbd")))
        except OSError as e:
            # The rest ends all the same.
            say(f"/dev/{name} cannot be detached: {e.strerror}")
            continue
        end = time.monotonic() + PATIENCE
        while _read(name, "pid") and time.monotonic() < end:
            time.sleep(0.05)
        say(f"/dev/{name} is still in use" if _read(name, "pid") else f"detached /dev/{name}")


def _attr(kind, data):
    raw = struct.pack("=HH", len(data) + 4, kind) + data
    return raw + bytes(-len(raw) % 4)


def _ask(sock, family, flags, command, attrs):
    """One generic netlink request; the attributes of its answer, as they are."""
    body = struct.pack("=BBH", command, 1, 0) + attrs
    sock.send(struct.pack("=IHHII", 16 + len(body), family, NLM_F_REQUEST | flags, 1, 0) + body)
    data = sock.recv(65536)
    kind = struct.unpack_from("=H", data, 4)[0]
    if kind == NLMSG_ERROR:
        errno = -struct.unpack_from("=i", data, 16)[0]
        if errno:
            raise OSError(errno, os.strerror(errno))
        return b""
    return data[20:struct.unpack_from("=I", data)[0]]


def _family(sock):
    left = _ask(sock, GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, _attr(CTRL_ATTR_FAMILY_NAME, b"nbd\0"))
    while len(left) >= 4:
        size, kind = struct.unpack_from("=HH", left)
        if kind == CTRL_ATTR_FAMILY_ID:
            return struct.unpack_from("=H", left, 4)[0]
        left = left[max(4, size + -size % 4):]
    raise Failure("the kernel does not name its nbd family")


def disconnect(index):
    """Has the kernel let a device go, as `nbd-client -d` does."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
        sock.bind((0, 0))
        sock.settimeout(PATIENCE)
        family = _family(sock)
        _ask(sock, family, NLM_F_ACK, NBD_CMD_DISCONNECT, _attr(NBD_ATTR_INDEX, struct.pack("=I", index)))
