"""Processes: identified by pid and start time, so that a pid used again is never hit."""

import os
import signal
import time


def start_time(pid):
    """Ticks after boot at which `pid` started; None when it is gone (or a zombie)."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            text = f.read()
    except OSError:
        return None
    # The name in parentheses may hold anything; the fields follow the last parenthesis.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid, started):
    """Whether the process that was `pid` and started then is still running."""
    return pid is not None and started is not None and start_time(pid) == started


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return [os.fsdecode(a) for a in f.read().split(b"\0")[:-1]]
    except OSError:
        return []


def find(command):
    """Pids of running processes with exactly this command line (an interpreter before it counts)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            line = command_of(int(entry))
            if line and (line == command or line[1:] == command) and start_time(int(entry)):
                found.append(int(entry))
    return found


def send(pid, started, sig):
    """Signals that process and no other; False when it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        # The pidfd is held, so if the start time matches now, the signal goes to that process.
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(fd, sig)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def reap(pid):
    """Takes the exit status of a child of ours, so that it is no zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        pass


def wait_gone(pid, started, seconds):
    """True when the process has ended within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        reap(pid)
        if not alive(pid, started):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
