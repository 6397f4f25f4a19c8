"""The MDM's REST interface, without proxies."""

import json
import urllib.error
import urllib.request

from common import Failure

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Api:
    def __init__(self, url, token=None):
        self.url, self.token = url, token

    def call(self, method, path, body=None, timeout=5, headers=None):
        """(status, answer); raises OSError when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with _opener.open(request, timeout=timeout) as answer:
                return answer.status, _decode(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, _decode(e.read())

    def get(self, path):
        """The answer of a GET that must succeed."""
        return self._must("GET", path, None)

    def post(self, path, body):
        return self._must("POST", path, body)

    def _must(self, method, path, body):
        status, answer = self.call(method, path, body)
        if status >= 300:
            words = answer if isinstance(answer, dict) else {}
            reason = words.get("message", f"HTTP status {status}")
            raise Failure(f"{method} {path}: {reason}", words.get("hint", ""))
        return answer


def _decode(data):
    try:
        return json.loads(data) if data.strip() else None
    except ValueError:
        return None
