"""The programs: where they are, whether they are up to date, building them."""

import os
import re
import subprocess

from common import ROOT, Failure, say

PROGRAMS = ("mdm", "sds-server", "sdc-nbd", "scli")
SOURCES = ("Cargo.toml", "Cargo.lock", "libs", "metrics", "mdm", "sds-server", "sdc-nbd", "scli")


def binaries():
    """The directory with all programs, built first when they are missing or older than the source.

    `QUARRY_BIN_DIR` is used as it is."""
    given = os.environ.get("QUARRY_BIN_DIR")
    if given:
        given = os.path.abspath(given)
        missing = [p for p in PROGRAMS[:3] if not os.access(os.path.join(given, p), os.X_OK)]
        if missing:
            raise Failure(f"QUARRY_BIN_DIR={given} lacks {', '.join(missing)}",
                          "unset it to use target/release")
        return given
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    directory = os.path.join(os.path.abspath(target), "release")
    why = _stale(directory)
    if why:
        _build(why)
    return directory


def _stale(directory):
    """Why the programs must be built, or None."""
    oldest = None
    for program in PROGRAMS:
        try:
            built = os.stat(os.path.join(directory, program)).st_mtime
        except OSError:
            return f"{program} is missing"
        oldest = built if oldest is None else min(oldest, built)
    stamp = os.path.join(directory, ".quarry-built")
    # cargo leaves a program alone that a change does not touch; the stamp says "looked at then".
    if os.path.exists(stamp):
        oldest = max(oldest, os.stat(stamp).st_mtime)
    newest, name = _newest()
    return f"{name} is newer than the programs" if newest > oldest else None


def _newest():
    best = (0.0, "")
    for source in SOURCES:
        path = os.path.join(ROOT, source)
        if os.path.isfile(path):
            best = max(best, (os.stat(path).st_mtime, source))
        for directory, _, files in os.walk(path):
            for f in files:
                if f.endswith((".rs", ".toml", ".html", ".js", ".css")):
                    full = os.path.join(directory, f)
                    best = max(best, (os.stat(full).st_mtime, os.path.relpath(full, ROOT)))
    return best


def check_rust():
    """Refuses a compiler older than `rust-version` in Cargo.toml, before it fails at length."""
    with open(os.path.join(ROOT, "Cargo.toml")) as f:
        wanted = re.search(r'^rust-version\s*=\s*"([\d.]+)"', f.read(), re.M).group(1)
    try:
        out = subprocess.run(["rustc", "--version"], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        raise Failure("there is no Rust compiler", "install one: https://rustup.rs") from None
    m = re.match(r"rustc (\d+)\.(\d+)", out.stdout)
    if not m:
        raise Failure(f"rustc does not work: {(out.stdout + out.stderr).strip()[:200]}")
    if tuple(map(int, m.groups())) < tuple(map(int, wanted.split(".")[:2])):
        raise Failure(f"Rust {m.group(1)}.{m.group(2)} is older than {wanted}",
                      "rustup update stable")


def _build(why):
    check_rust()
    say(f"building the programs ({why}); the first time this takes some minutes")
    command = ["cargo", "build", "--release", "--workspace"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise Failure("the build failed", "what cargo says above tells why")
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    with open(os.path.join(target, "release", ".quarry-built"), "w"):
        pass
