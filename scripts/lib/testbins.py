"""Test programs that one `cargo build --message-format=json` made."""

import json
import os


def programs(path):
    """(package, kind and name, executable, directory) of each test program, in a fixed order."""
    found = {}
    with open(path) as f:
        for line in f:
            if not line.startswith("{"):
                continue
            d = json.loads(line)
            if d.get("reason") == "compiler-artifact" and d.get("executable") and d["profile"]["test"]:
                directory = os.path.dirname(d["manifest_path"])
                package = package_name(d["package_id"])
                found[d["executable"]] = (package, f"{d['target']['kind'][0]} {d['target']['name']}", d["executable"], directory)
    return sorted(found.values())


def package_name(identity):
    """`path+file:///x/libs/store#quarry-store@0.1.0` or `path+file:///x/mdm#0.1.0`."""
    place, _, rest = identity.partition("#")
    name, at, _ = rest.partition("@")
    return name if at else place.rsplit("/", 1)[1]
