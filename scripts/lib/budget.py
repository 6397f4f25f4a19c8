"""What an I/O costs in each daemon: CPU, context switches and, where `perf` is at hand, system calls, io_uring operations and
those of them that the kernel handed to a worker thread. All per I/O of the job, so a daemon that serves a third of them counts a third."""

import glob
import shutil
import subprocess
import threading
import time

EVENTS = {
    "raw_syscalls:sys_enter": "syscalls",
    "io_uring:io_uring_submit_req": "ring ops",
    "io_uring:io_uring_queue_async_work": "to workers",
    "page-faults": "faults",
}


def _seconds(pid, tick):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) / tick, int(fields[12]) / tick


def _waits(pid):
    """Times its threads went to sleep."""

    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        try:
            with open(path) as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("voluntary_ctxt"))
        except OSError:
            pass
    return total


class Budget:
    """Counts around one run of a job; `seconds` as given to it, its ramp of one second comes on top."""

    def __init__(self, processes, seconds, tick):
        self.processes, self.seconds, self.tick = processes, seconds, tick
        self.counters = {}
        self.before = {n: (_seconds(p, tick), _waits(p)) for n, p in processes.items()}
        self.thread = threading.Thread(target=self._count)
        self.thread.start()

    def _count(self):
        if not shutil.which("perf") or self.seconds < 2:
            return
        time.sleep(1.2)
        command = ["perf", "stat", "-x", ",", "-e", ",".join(EVENTS)]
        running = {
            name: subprocess.Popen(command + ["-p", str(pid), "--", "sleep", str(self.seconds - 1)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for name, pid in self.processes.items()
        }
        for name, process in running.items():
            rows = [line.split(",") for line in process.communicate()[1].splitlines()]
            self.counters[name] = {EVENTS[r[2]]: float(r[0]) for r in rows if len(r) > 2 and r[2] in EVENTS and r[0][:1].isdigit()}

    def rows(self, iops):
        """After the run: a list of columns for each process."""
        self.thread.join()
        ios = max(iops * (self.seconds + 1), 1)
        counted = max(iops * (self.seconds - 1), 1)
        out = []
        for name, pid in self.processes.items():
            (user, system), waits = _seconds(pid, self.tick), _waits(pid)
            (user0, system0), waits0 = self.before[name]
            row = {"user us": (user - user0) / ios * 1e6, "system us": (system - system0) / ios * 1e6, "sleeps": (waits - waits0) / ios}
            row.update({k: v / counted for k, v in self.counters.get(name, {}).items()})
            out.append((name, row))
        return out
