"""The members of a cluster: start, stop, and what their state file says of them."""

import contextlib
import fcntl
import os
import signal
import subprocess
import time

import proc
from common import Failure, read_json, say, tail, write_json

# SIGTERM hands over and ends within this, by contract; a little more for a busy machine.
STOP_SECONDS = 12


class Cluster:
    """`D/cluster.json` and the processes it names."""

    def __init__(self, directory):
        self.directory = os.path.realpath(directory)
        self.path = os.path.join(self.directory, "cluster.json")
        self.state = None

    def exists(self):
        return os.path.exists(self.path)

    def load(self):
        try:
            self.state = read_json(self.path)
        except FileNotFoundError:
            raise Failure(f"there is no cluster in {self.directory}",
                          "scripts/cluster up --dir D makes one", 3) from None
        except ValueError as e:
            raise Failure(f"{self.path} is damaged: {e}") from None
        if self.state.get("version") != 1:
            raise Failure(f"{self.path} is of another release")
        return self

    def save(self):
        # It has the token of the interface.
        write_json(self.path, self.state, 0o600)

    @contextlib.contextmanager
    def lock(self):
        """One command at a time on a cluster."""
        with open(os.path.join(self.directory, ".lock"), "w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("waiting for another scripts/cluster on this directory")
                fcntl.flock(f, fcntl.LOCK_EX)
            yield self

    @property
    def members(self):
        return self.state["members"]

    def member(self, name):
        for m in self.members:
            if m["name"] == name:
                return m
        names = " ".join(m["name"] for m in self.members)
        raise Failure(f"there is no member '{name}'", f"there are: {names}", 3)

    def of_role(self, role):
        return [m for m in self.members if m["role"] == role]

    def running(self, m):
        """The member's process as (pid, start time), or None. Also finds one that somebody else
        started with the member's command line, and writes it down."""
        if proc.alive(m["pid"], m["start_time"]):
            return m["pid"], m["start_time"]
        for pid in proc.find(m["command"]):
            started = proc.start_time(pid)
            if started:
                m["pid"], m["start_time"] = pid, started
                return pid, started
        return None

    def start(self, m):
        """Starts a member that is not running; its process is the daemon itself."""
        if self.running(m):
            return
        errors = m["log"] + ".stderr"
        with open(errors, "ab") as f:
            child = subprocess.Popen(m["wrap"] + m["command"], stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                                     cwd="/", start_new_session=True)
        # We look at it by pid and start time; it outlives this script.
        child.returncode = 0
        m["pid"], m["start_time"] = child.pid, proc.start_time(child.pid)
        self.save()

    def check(self, m):
        """Raises with the end of the log when a member that should run does not."""
        proc.reap(m["pid"])
        if not self.running(m):
            raise Failure(f"{m['name']} ended\n{self.explain(m)}", f"its log is {m['log']}")

    def explain(self, m):
        """The end of a member's log and of what it wrote to stderr."""
        lines = []
        for path in (m["log"], m["log"] + ".stderr"):
            lines += [f"  {m['name']}| {line}" for line in tail(path, 10)]
        return "\n".join(lines) or f"  {m['name']}| (it wrote nothing)"

    def kill(self, m):
        """kill -9; True when it was running."""
        now = self.running(m)
        if now:
            proc.send(*now, signal.SIGKILL)
            proc.wait_gone(*now, STOP_SECONDS)
        self._gone(m)
        return bool(now)

    def stop(self, members):
        """SIGTERM to all, together; those that do not end in time are killed, and named."""
        waiting = []
        for m in members:
            now = self.running(m)
            if now and proc.send(*now, signal.SIGTERM):
                waiting.append((m, now))
        deadline = time.monotonic() + STOP_SECONDS
        late = []
        for m, now in waiting:
            if not proc.wait_gone(*now, max(0.0, deadline - time.monotonic())):
                say(f"{m['name']} did not end within {STOP_SECONDS} s of SIGTERM and is killed")
                proc.send(*now, signal.SIGKILL)
                proc.wait_gone(*now, STOP_SECONDS)
                late.append(m["name"])
        for m in members:
            self._gone(m)
        return late

    def _gone(self, m):
        m["pid"] = m["start_time"] = None
        self.save()

    def stop_all(self):
        """Clients first, then servers, then the MDM."""
        late = []
        for role in ("sdc", "sds", "mdm"):
            late += self.stop(self.of_role(role))
        return late
