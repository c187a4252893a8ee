# SPDX-License-Identifier: Apache-2.0
"""etcd's JSON gateway over one HTTP connection: how tests read and write, with nothing of our client."""

from __future__ import annotations

import http.client
import json
import socket
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dataplane.store.keyvalue import Record

TXN_MAX = 1000  # operations that Etcd of etcd.py takes in one transaction


def _encode(text: str) -> str:
    return b64encode(text.encode()).decode()


def _end(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Gateway:
    """The keys below one prefix, which ends in a slash."""

    def __init__(
        self, connect: Callable[[], socket.socket], host: str, prefix: str = "/coreos.com/network/"
    ) -> None:
        """Speak through a connection of `connect`, anew when it has broken."""
        self._connect = connect
        self._prefix = prefix
        self._http = http.client.HTTPConnection(host, timeout=20)

    def ask(self, call: str, **request: Any) -> dict[str, Any]:
        """Make one call; AssertionError with etcd's words when it refuses."""
        try:
            response = self._post(call, json.dumps(request))
        except (ConnectionError, http.client.HTTPException):  # of a server that is not there any more
            self._http.close()
            response = self._post(call, json.dumps(request))
        answer = json.loads(response.read())
        assert response.status == http.HTTPStatus.OK, answer
        return dict(answer)

    def _post(self, call: str, body: str) -> http.client.HTTPResponse:
        if self._http.sock is None:
            self._http.sock = self._connect()
        self._http.request("POST", f"/v3/{call}", body, {"Content-Type": "application/json"})
        return self._http.getresponse()

    def _all(self) -> dict[str, str]:
        return {"key": _encode(self._prefix), "range_end": _encode(_end(self._prefix))}

    def revision(self) -> int:
        """Return the revision of the store."""
        return int(self.ask("kv/range", **self._all(), count_only=True)["header"]["revision"])

    def records(self) -> list[Record]:
        """Return all keys; how long they live is not told."""
        found = self.ask("kv/range", **self._all()).get("kvs", [])
        return [
            Record(
                b64decode(kv["key"]).decode()[len(self._prefix) :],
                b64decode(kv.get("value", "")).decode(),
                int(kv["create_revision"]),
                int(kv["mod_revision"]),
            )
            for kv in found
        ]

    def put(self, key: str, value: str, ttl_s: float | None = None) -> int:
        """Write a key, over whatever is there; return the revision."""
        lease = 0 if ttl_s is None else int(self.ask("lease/grant", TTL=int(ttl_s))["ID"])
        done = self.ask("kv/put", key=_encode(self._prefix + key), value=_encode(value), lease=lease)
        return int(done["header"]["revision"])

    def write(self, puts: Mapping[str, str], gone: Iterable[str] = ()) -> int:
        """Write and delete keys in one transaction; return the revision."""
        operations = [
            {"request_put": {"key": _encode(self._prefix + key), "value": _encode(value)}}
            for key, value in puts.items()
        ]
        operations += [{"request_delete_range": {"key": _encode(self._prefix + key)}} for key in gone]
        return int(self.ask("kv/txn", success=operations)["header"]["revision"])

    def put_all(self, values: Mapping[str, str]) -> None:
        """Write many keys, in few transactions."""
        items = list(values.items())
        for start in range(0, len(items), TXN_MAX):
            self.write(dict(items[start : start + TXN_MAX]))

    def delete(self, *keys: str) -> int:
        """Delete keys in one transaction; return the revision."""
        return self.write({}, keys)

    def clear(self, but: Iterable[str] = ()) -> None:
        """Delete all keys but these."""
        keys = [record.key for record in self.records() if record.key not in set(but)]
        for start in range(0, len(keys), TXN_MAX):
            self.delete(*keys[start : start + TXN_MAX])

    def compact(self) -> int:
        """Forget all changes up to now; return the revision."""
        revision = self.revision()
        self.ask("kv/compaction", revision=revision)
        return revision

    def fileno(self) -> int:
        """Return the descriptor of its connection; -1 if there is none now."""
        return -1 if self._http.sock is None else self._http.sock.fileno()

    def close(self) -> None:
        """Let go of the server."""
        self._http.close()
