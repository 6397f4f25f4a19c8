"""What the scripts share: where things are, how failures are said, sizes, atomic files."""

import json
import os
import re
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Everything temporary of ours lies here, so that `scripts/cluster clean` finds it.
TEMP_PREFIX = "/tmp/quarry-"
# ... or, what is to be in memory, here.
MEMORY_PREFIX = "/dev/shm/quarry-"


class Failure(Exception):
    """An expected failure: shown as `error:` and `hint:`, without a traceback."""

    def __init__(self, message, hint="", code=1):
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def say(text):
    """Progress, for people: stderr, so that stdout stays clean."""
    print(text, file=sys.stderr, flush=True)


def run_main(main):
    """Runs `main` and ends the process with its status; failures are said, not traced."""
    try:
        code = main() or 0
    except Failure as e:
        say(f"error: {e.message}")
        if e.hint:
            say(f"hint:  {e.hint}")
        code = e.code
    except OSError as e:
        say(f"error: {e}")
        code = 1
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    sys.exit(code)


def parse_size(text):
    """Bytes of `4GiB`, `512M` or `1048576`."""
    m = re.fullmatch(r"\s*(\d+)\s*(?:([KMGT])(?:iB)?|B?)\s*", text)
    if not m:
        raise Failure(f"'{text}' is not a size", "for example 512MiB, 4GiB or 1TiB", 2)
    shift = {None: 0, "K": 10, "M": 20, "G": 30, "T": 40}[m.group(2)]
    return int(m.group(1)) << shift


def show_size(n):
    """The largest unit that leaves at least 1."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n >= 1 << shift:
            return f"{n / (1 << shift):.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{n} B"


def write_atomic(path, text, mode=0o644):
    """A reader sees the old content or the new, never a part."""
    directory = os.path.dirname(path)
    fd, temp = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        with os.fdopen(fd, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temp, mode)
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise


def write_json(path, value, mode=0o644):
    write_atomic(path, json.dumps(value, indent=1) + "\n", mode)


def read_json(path):
    with open(path) as f:
        return json.load(f)


def tail(path, lines=15):
    """The last lines of a file, or an empty list."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 64 * 1024))
            return f.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
