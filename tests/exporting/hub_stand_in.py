"""A stand-in for the Hugging Face Hub's HTTP API: enough to make a repository and commit to it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "a1B2c3D4" * 4


@dataclass
class Hub:
    """What the server saw and holds; `failing` maps a part of a path to a status to answer with."""

    url: str = ""
    repos: dict[str, dict[str, object]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    hanging: str = ""
    reached: threading.Event = field(default_factory=threading.Event)

    def is_private(self, name: str) -> bool:
        """Whether a repository was asked to be private, in the words of older and newer clients."""
        wanted = self.repos[name]
        return wanted.get("private") is True or wanted.get("visibility") == "private"


@contextmanager
def serving() -> Iterator[Hub]:
    """Run the stand-in until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": f"no such path {self.path}"})

    def do_GET(self) -> None:
        if not self.refused():
            self.answer(200, {"id": "x", "sha": "0" * 40, "siblings": [], "tags": []})

    def refused(self) -> bool:
        if self.hub.hanging and self.hub.hanging in self.path:
            self.hub.reached.set()
            threading.Event().wait(60)
        for part, status in self.hub.failing.items():
            if part in self.path:
                self.answer(status, {"error": "out of order"})
                return True
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
            return True
        return False

    def create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        known = name in self.hub.repos
        self.hub.repos.setdefault(name, wanted)
        status = 409 if known else 200
        self.answer(status, {"url": f"{self.hub.url}/{name}", "error": "exists"})

    def commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
        self.answer(
            200,
            {"commitUrl": f"{self.hub.url}/owner/name/commit/{'1' * 40}", "commitOid": "1" * 40},
        )

    def answer(self, status: int, values: dict[str, object]) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""
