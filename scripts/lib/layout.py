"""What a cluster looks like on disk: directories, ports, settings files, command lines."""

import hashlib
import json
import os
import random
import secrets
import shutil
import socket

from common import TEMP_PREFIX, Failure, say, show_size, write_atomic

CAPABILITY = {"mdm": "MDM", "sds": "SDS", "sdc": "SDC"}
PROGRAM = {"mdm": "mdm", "sds": "sds-server", "sdc": "sdc-nbd"}
# Below the range the kernel takes for outgoing connections, so that none of those is in the way.
PORTS = range(20000, 32000)
# The kernel's limit on socket paths, and the longest name with its slash and ending.
SOCKET_PATH, NAME_ROOM = 107, 63 + 6
TMPFS_MAGIC_NAMES = ("tmpfs", "ramfs")


def port_free(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def free_ports(count):
    """Ports on 127.0.0.1 nobody listens on; different ones."""
    found = []
    for port in random.sample(PORTS, len(PORTS)):
        if port_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise Failure("no free ports on 127.0.0.1")


def socket_dir(directory):
    """A short directory for sockets, the same for the same cluster, ours alone."""
    key = hashlib.sha256(os.path.realpath(directory).encode()).hexdigest()[:8]
    path = TEMP_PREFIX + key
    assert len(path) + len("/sdc99") + NAME_ROOM <= SOCKET_PATH
    return path


def make_socket_dir(path, directory):
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.lstat(path).st_uid != os.getuid() or os.path.islink(path):
        raise Failure(f"{path} belongs to somebody else", "remove it, then try again")
    write_atomic(os.path.join(path, "cluster"), os.path.realpath(directory) + "\n")


def make_socket_dirs(state, directory):
    make_socket_dir(state["socket_dir"], directory)
    for m in state["members"]:
        os.makedirs(member_sockets(state, m), mode=0o700, exist_ok=True)


def fs_type(path):
    """Type of the file system `path` lies on."""
    path, best = os.path.realpath(path), ("", "")
    with open("/proc/self/mountinfo") as f:
        for line in f:
            left, right = line.split(" - ", 1)
            point = left.split()[4].encode().decode("unicode_escape")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, right.split()[0])
    return best[1]


def make_device(path, size):
    """A device file: sparse on tmpfs (memory is taken when written), allocated elsewhere."""
    directory = os.path.dirname(path)
    sparse = fs_type(directory) in TMPFS_MAGIC_NAMES
    free = shutil.disk_usage(directory).free
    if not sparse and free < size:
        raise Failure(f"{directory} has {show_size(free)} free, a device wants {show_size(size)}",
                      "give --device-size or --backing on a larger disk")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if sparse:
            os.ftruncate(fd, size)
        else:
            os.posix_fallocate(fd, 0, size)
    except OSError as e:
        os.unlink(path)
        raise Failure(f"cannot make {path}: {e.strerror}", "give --device-size or --backing") from e
    finally:
        os.close(fd)


# What a --members file may say of a member, and its type.
OVERRIDES = {"address": str, "port": int, "wrap": list, "args": list, "devices": list}


def read_members(path, names):
    """What a --members file says: `{"sds1": {"address": "10.1.2.3", ...}}`.

    `address`: where the member listens instead of 127.0.0.1; `port`: an SDS's data port; `wrap`: a
    command in front of the daemon's that ends in an exec of it (nsenter, unshare, env); `args`: more
    arguments; `devices`: existing blank files or block devices of an SDS."""
    try:
        with open(path) as f:
            found = json.load(f)
    except (OSError, ValueError) as e:
        raise Failure(f"--members {path}: {e}", "a JSON object, a member's name to an object", 2) from None
    for name, what in found.items():
        if name not in names:
            raise Failure(f"--members {path}: there is no member '{name}'", f"there are: {' '.join(names)}", 2)
        for key, value in what.items():
            if key not in OVERRIDES or not isinstance(value, OVERRIDES[key]):
                raise Failure(f"--members {path}: '{key}' of {name} is not understood",
                              f"known: {' '.join(OVERRIDES)}", 2)
    return found


def plan(directory, options, bin_dir):
    """The state of a new cluster; nothing is made yet."""
    members = []
    for role, count in (("mdm", options.mdm), ("sds", options.sds), ("sdc", options.sdc)):
        for n in range(1, count + 1):
            name = f"{role}{n}"
            devices = [os.path.join(options.backing, f"{name}.img")] if role == "sds" else []
            members.append({"role": role, "name": name, "id": n, "pid": None, "start_time": None,
                            "metrics": None, "data": os.path.join(directory, name),
                            "devices": devices, "log": os.path.join(directory, "log", name + ".log"),
                            "command": []})
    names = [m["name"] for m in members]
    special = read_members(options.members, names) if options.members else {}
    for m in members:
        what = special.get(m["name"], {})
        m["address"], m["port"] = what.get("address", "127.0.0.1"), what.get("port", 0)
        m["wrap"], m["args"] = what.get("wrap", []), what.get("args", [])
        m["given"] = "devices" in what
        if m["given"]:
            m["devices"] = [os.path.abspath(d) for d in what["devices"]]
    state = {"version": 1, "api": None, "apis": [], "token": secrets.token_hex(16),
             "cluster_id": None, "members": members, "socket_dir": socket_dir(directory),
             "backing": options.backing, "device_size": options.device_size,
             "copies": options.copies, "ack": options.ack, "bin_dir": bin_dir}
    assign(directory, state, bin_dir)
    return state


def assign(directory, state, bin_dir):
    """Gives every member ports and a command line."""
    members = state["members"]
    ports = iter(free_ports(len(members) + 2 * sum(m["role"] == "mdm" for m in members)))
    state["apis"], state["controls"] = [], []
    for m in members:
        m["metrics"] = f"http://{m['address']}:{next(ports)}/metrics"
        if m["role"] == "mdm":
            state["apis"].append(f"http://{m['address']}:{next(ports)}")
            state["controls"].append(f"{m['address']}:{next(ports)}")
    state["api"] = state["apis"][0]
    state["bin_dir"] = bin_dir
    for m in members:
        m["command"] = command(directory, state, m, bin_dir)


def address(url):
    return url.split("//", 1)[1].split("/", 1)[0]


def member_sockets(state, m):
    """Where a member's sockets lie: each further SDC has a directory of its own, as volumes are named alike."""
    if m["role"] == "sdc" and m["id"] > 1:
        return os.path.join(state["socket_dir"], m["name"])
    return state["socket_dir"]


def command(directory, state, m, bin_dir):
    """A member's argv: absolute paths, nothing from the environment."""
    argv = [os.path.join(bin_dir, PROGRAM[m["role"]]),
            "--node-config", os.path.join(m["data"], "node.toml"), "--data-dir", m["data"]]
    if m["role"] == "mdm":
        n = m["id"] - 1
        argv += ["--listen", address(state["apis"][n]), "--control", state["controls"][n],
                 "--secret-file", os.path.join(directory, "secret"),
                 "--token-file", os.path.join(directory, "token")]
    else:
        argv += ["--socket-dir", member_sockets(state, m)]
    if m["role"] == "sds":
        argv += ["--listen", f"{m['address']}:{m['port']}"]
        for device in m["devices"]:
            argv += ["--device", device]
    return argv + ["--metrics", address(m["metrics"]), "--log-file", m["log"]] + m["args"]


def ports_of(state):
    addresses = [address(u) for u in state["apis"]] + state["controls"]
    addresses += [address(m["metrics"]) for m in state["members"]]
    return [int(a.rsplit(":", 1)[1]) for a in addresses]


def write_settings(directory, state):
    """Directories, secret, token and a node.toml a member; existing secrets stay."""
    for path in [os.path.join(directory, "log")] + [m["data"] for m in state["members"]]:
        os.makedirs(path, exist_ok=True)
    for name, text in (("secret", secrets.token_hex(32)), ("token", state["token"])):
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            write_atomic(path, text + "\n", 0o600)
    for m in state["members"]:
        # JSON strings and arrays of strings are TOML too.
        lines = [("name", m["name"]), ("addresses", [m["address"]]),
                 ("capabilities", [CAPABILITY[m["role"]]]), ("mdm", state["controls"]),
                 ("secret_file", os.path.join(directory, "secret"))]
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines)
        write_atomic(os.path.join(m["data"], "node.toml"), text)


def make_devices(state):
    """Makes the device files of a new cluster; none may exist before."""
    made = []
    try:
        for m in state["members"]:
            for path in m["devices"] if not m["given"] else []:
                if os.path.lexists(path):
                    raise Failure(f"{path} exists already", "give another --backing, or remove it")
                make_device(path, state["device_size"])
                made.append(path)
    except BaseException:
        for path in made:
            os.unlink(path)
        raise
    kind = fs_type(state["backing"])
    how = "sparse" if kind in TMPFS_MAGIC_NAMES else "allocated"
    # In a chroot the mount that a path lies on may not be listed.
    what = ", ".join(w for w in (kind, how) if w)
    say(f"{len(made)} devices of {show_size(state['device_size'])} in {state['backing']} ({what})")
