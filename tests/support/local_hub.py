"""A hub on this machine that speaks the Hugging Face hub's API as ``huggingface_hub`` uses it, for tests and for transcripts.

    with LocalHub({"me/models": {"a.gguf": data}}) as hub: ...  # with HF_ENDPOINT=hub.address

It can also do what goes wrong in the wild: drop connections, stand still, serve other bytes than it described, and refuse.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from urllib.parse import unquote, urlsplit

PIECE = 1 << 16


class LocalHub:
    """Repositories by name, each with its files' bytes.

    address: for HF_ENDPOINT. requests: (method, path, token) in order. sent: bytes of files. And what goes wrong:
    drop_after: the bytes to send of a file's next answers, one number each. stand_still_after: bytes, once. pace: seconds per piece.
    served_instead: other bytes, by file name. token: what a reader must have. gated: repositories with terms to accept.
    without_range: ranges are ignored. broken: the status of every answer.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.requests: list[tuple[str, str, str]] = []
        self.sent = 0
        self.drop_after: list[int] = []
        self.stand_still_after: int | None = None
        self.pace = 0.0
        self.served_instead: dict[str, bytes] = {}
        self.token = ""
        self.gated: set[str] = set()
        self.without_range = False
        self.broken = 0
        self.standing_still = threading.Event()

    def commit(self, repository: str) -> str:
        """That of a repository as it is now; all branches are at it."""
        content = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.repositories[repository].items()))
        return hashlib.sha1(content.encode()).hexdigest()

    def __enter__(self) -> LocalHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hub": self}))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.address, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"  # two hosts, as the real hub has
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Answer(BaseHTTPRequestHandler):
    """One request."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.requests.append((self.command, path, token))
        words = path.strip("/").split("/")
        if self.hub.broken:
            self._say(self.hub.broken, {})
        elif words[0] == "storage":
            self._send(words[1], words[2])
        elif self.hub.token and token != self.hub.token:
            self._say(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        elif words[:2] == ["api", "models"]:
            self._describe("/".join(words[2:4]), "/".join(words[5:]))
        else:
            self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))

    def _known(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.repositories:
            self._say(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", "v1", self.hub.commit(repository)):
            self._say(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return True
        return False

    def _describe(self, repository: str, revision: str) -> None:
        if self._known(repository, revision):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": _git_hash(data)} | _large(name, data)
                for name, data in self.hub.repositories[repository].items()
            ]
            reply = {"id": repository, "modelId": repository, "sha": self.hub.commit(repository), "siblings": siblings}
            self._say(200, {"Content-Type": "application/json"}, json.dumps(reply).encode())

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if not self._known(repository, revision):
            return
        commit = {"X-Repo-Commit": self.hub.commit(repository)}
        data = self.hub.repositories[repository].get(name)
        if data is None:
            self._say(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"} | commit)
        elif repository in self.hub.gated:
            self._say(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"} | commit)
        elif _large(name, data):
            digest = hashlib.sha256(data).hexdigest()
            there = f"{self.hub.storage}/storage/{digest}/{name.rpartition('/')[2]}"
            self._say(302, commit | {"Location": there, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))})
        else:
            self._say(200, commit | {"ETag": f'"{_git_hash(data)}"'}, data)

    def _send(self, digest: str, name: str) -> None:
        files = (data for repository in self.hub.repositories.values() for data in repository.values())
        data = next(data for data in files if hashlib.sha256(data).hexdigest() == digest)
        data = self.hub.served_instead.get(name, data)
        asked = self.headers.get("Range") if not self.hub.without_range else None
        first, _, last = asked.removeprefix("bytes=").partition("-") if asked else ("0", "", "")
        start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._write(data[start:end])

    def _write(self, data: bytes) -> None:
        end = self.hub.drop_after.pop(0) if self.hub.drop_after else len(data)
        for start in range(0, min(end, len(data)), PIECE):
            if self.hub.stand_still_after is not None and start >= self.hub.stand_still_after:
                self.hub.stand_still_after = None
                self.wfile.flush()
                self.hub.standing_still.set()
                sleep(30)
            try:
                self.wfile.write(data[start : min(start + PIECE, end)])
            except OSError:  # the reader has gone
                break
            self.hub.sent += min(PIECE, end - start, len(data) - start)
            sleep(self.hub.pace)
        if end < len(data):
            self.close_connection = True
            self.connection.shutdown(2)

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _large(name: str, data: bytes) -> dict[str, object]:
    """What the hub says besides of files that git itself does not hold."""
    if not name.endswith(".gguf"):
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
