"""A small NBD client (fixed newstyle, GO, simple replies) on a Unix socket: size, read, write, flush."""

import socket
import struct
import urllib.parse

from common import Failure

NBDMAGIC, IHAVEOPT, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST, SIMPLE_REPLY = 0x25609513, 0x67446698
OPT_GO, REP_ACK, REP_INFO, INFO_EXPORT = 7, 1, 3, 0
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
PIECE = 256 << 10


def parse(uri):
    """(export, socket path) of nbd+unix:///NAME?socket=PATH."""
    u = urllib.parse.urlsplit(uri)
    path = urllib.parse.parse_qs(u.query).get("socket", [""])[0]
    if u.scheme != "nbd+unix" or not path:
        raise Failure(f"'{uri}' is no nbd+unix URI")
    return urllib.parse.unquote(u.path.lstrip("/")), path


class Nbd:
    """One connection; requests one after another."""

    def __init__(self, uri, timeout=60):
        export, path = parse(uri)
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(timeout)
        self.s.connect(path)
        self.cookie = 0
        magic, option, flags = struct.unpack(">QQH", self._take(18))
        if magic != NBDMAGIC or option != IHAVEOPT:
            raise Failure(f"{path} does not speak NBD")
        self.s.sendall(struct.pack(">I", flags & 3))
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.s.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, len(body)) + body)
        self.size = None
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            data = self._take(length)
            if kind == REP_INFO and struct.unpack(">H", data[:2])[0] == INFO_EXPORT:
                self.size = struct.unpack(">Q", data[2:10])[0]
            elif kind == REP_ACK:
                return
            elif kind & 1 << 31:
                raise Failure(f"export '{export}' is refused: {data.decode(errors='replace')}")

    def _take(self, n):
        out = bytearray()
        while len(out) < n:
            part = self.s.recv(n - len(out))
            if not part:
                raise Failure("the NBD server closed the connection")
            out += part
        return bytes(out)

    def _ask(self, command, offset, length, data=b"", answer=0):
        self.cookie += 1
        head = struct.pack(">IHHQQI", REQUEST, 0, command, self.cookie, offset, length)
        self.s.sendall(head + data)
        magic, error, cookie = struct.unpack(">IIQ", self._take(16))
        if magic != SIMPLE_REPLY or cookie != self.cookie:
            raise Failure("an NBD reply that does not fit its request")
        if error:
            raise Failure(f"NBD error {error} at {offset}+{length}")
        return self._take(answer)

    def write(self, offset, data):
        for i in range(0, len(data), PIECE):
            part = data[i:i + PIECE]
            self._ask(WRITE, offset + i, len(part), part)

    def read(self, offset, length):
        parts = [(offset + i, min(PIECE, length - i)) for i in range(0, length, PIECE)]
        return b"".join(self._ask(READ, at, n, answer=n) for at, n in parts)

    def flush(self):
        self._ask(FLUSH, 0, 0)

    def close(self):
        try:
            self.s.sendall(struct.pack(">IHHQQI", REQUEST, 0, DISC, 0, 0, 0))
        except OSError:
            pass
        self.s.close()
