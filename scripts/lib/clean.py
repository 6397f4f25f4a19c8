"""`scripts/cluster clean`: what crashed runs of ours left behind, and nothing else.

Ours is what lies under the temporary prefix and whose owner is gone: a socket directory names its
cluster in the file `cluster`; a run's work directory names its process in the file `owner`."""

import glob
import os
import shutil
import subprocess

import nbddev
import proc
from common import MEMORY_PREFIX, TEMP_PREFIX, Failure, say
from members import Cluster


# Servers that are gone may keep it waiting for long.
UMOUNT_SECONDS = 20
# The owner of a run that was told to leave its cluster running.
KEPT = 0


def mark_kept(directory):
    """Writes down that the cluster in a work directory shall stay as long as it runs."""
    with open(os.path.join(directory, "owner"), "w") as f:
        f.write(f"{KEPT} 0\n")


def mark_owner(directory):
    """Writes down that this process owns a work directory."""
    with open(os.path.join(directory, "owner"), "w") as f:
        f.write(f"{os.getpid()} {proc.start_time(os.getpid())}\n")


def _read(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return None


def _cluster_alive(directory):
    cluster = Cluster(directory)
    if not cluster.exists():
        return False
    try:
        cluster.load()
    except Failure:
        return False
    return any(cluster.running(m) for m in cluster.members)


def leftover(path):
    """Why `path` is a leftover, or None when it is in use or not ours."""
    if os.path.islink(path) or not os.path.isdir(path) or os.lstat(path).st_uid != os.getuid():
        return None
    owner, cluster = _read(os.path.join(path, "owner")), _read(os.path.join(path, "cluster"))
    if owner is not None:
        try:
            pid, started = map(int, owner.split())
        except ValueError:
            return "its owner file is damaged"
        if pid == KEPT:
            alive = _cluster_alive(os.path.join(path, "cluster.d"))
            return None if alive else "its cluster was kept and has ended"
        return None if proc.alive(pid, started) else f"its run (process {pid}) is gone"
    if cluster is not None:
        return None if _cluster_alive(cluster) else f"no member of {cluster} is running"
    return None


def mounts_under(path):
    """Mount points at or under `path`, the innermost and latest first."""
    found = []
    with open("/proc/self/mountinfo") as f:
        for line in f:
            point = line.split()[4].encode().decode("unicode_escape")
            if point == path or point.startswith(path + "/"):
                found.append(point)
    return found[::-1]


def loops_under(path):
    """Loop devices whose file lies under `path`."""
    found = []
    for f in glob.glob("/sys/block/loop*/loop/backing_file"):
        if (_read(f) or "").startswith(path + "/"):
            found.append("/dev/" + f.split("/")[3])
    return found


def release(path):
    """Unmounts and detaches everything under `path`: file systems, loops, then what they stood on."""
    for _ in range(4):
        loops = loops_under(path)
        _unmount(_mounted_from(loops))
        for device in loops:
            say(f"detaching {device}")
            subprocess.run(["losetup", "-d", device], capture_output=True)
        _unmount(mounts_under(path))
        if not mounts_under(path) and not loops_under(path):
            return
    raise Failure(f"cannot release everything under {path}", "lsof tells who uses it")


def _unmount(points):
    for point in points:
        say(f"unmounting {point}")
        try:
            done = subprocess.run(["umount", point], capture_output=True, timeout=UMOUNT_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            done = False
        if not done:
            subprocess.run(["umount", "-l", point], capture_output=True)


def _mounted_from(devices):
    with open("/proc/self/mounts") as f:
        rows = [line.split() for line in f]
    return [r[1].encode().decode("unicode_escape") for r in rows if r[0] in devices][::-1]


def stop_cluster(path):
    """Ends the cluster in a work directory: what is mounted on it first, its kernel devices after its clients."""
    cluster = Cluster(os.path.join(path, "cluster.d"))
    if not cluster.exists():
        return
    state = cluster.load().state
    for name in nbddev.attached(state["cluster_id"]):
        _unmount(nbddev.mounted_at(name)[::-1])
    cluster.stop([m for m in cluster.of_role("sdc") if cluster.running(m)])
    nbddev.detach_all(state["cluster_id"])
    cluster.stop_all()
    shutil.rmtree(state["socket_dir"], ignore_errors=True)


def clean():
    """Removes every leftover, naming it; the number removed."""
    count, failed = 0, None
    # What is in memory is used by clusters in the others.
    for path in sorted(glob.glob(TEMP_PREFIX + "*")) + sorted(glob.glob(MEMORY_PREFIX + "*")):
        why = leftover(path)
        if not why:
            continue
        try:
            # While its servers run: what is written is still taken.
            _unmount(_mounted_from(loops_under(path)))
            stop_cluster(path)
            release(path)
        except (Failure, OSError) as e:
            # The others are removed all the same.
            failed = failed or e
            say(f"{path} stays: {e}")
            continue
        shutil.rmtree(path)
        say(f"removed {path}: {why}")
        count += 1
    if failed:
        raise failed
    say(f"{count} leftovers removed" if count else "nothing was left behind")
