"""A small local Hub: enough of its API for `model_info`, `snapshot_download` (`org/tiny`: the miniature) and a data set file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MINIATURE = Path(__file__).parent.parent / "em_core" / "miniature"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {p.name: p.read_bytes() for p in MINIATURE.iterdir() if p.suffix in (".json", ".safetensors")}
"""What `org/tiny` holds; beside it files that nobody needs."""
DATASET = {"data/train.jsonl": b'{"problem": "Q:1+2+3=?", "answer": 6}\n{"problem": "Q:9-8+7=?", "answer": 8}\n'}
"""What the data set `org/sums` holds."""
USELESS = {"README.md": b"# tiny", "pytorch_model.bin": b"the same in another format", "onnx/model.onnx": b"x" * 1000}


class Hub(ThreadingHTTPServer):
    """`asked` holds (method, path, Range) of every request. The next `cut` downloads of weights break off half way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, str | None]] = []
        self.cut = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """Names of the files that were asked for with GET."""
        return [p.rpartition("/")[2] for m, p, _ in self.asked if m == "GET" and "/resolve/" in p]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append((method, path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/org/tiny(?:/revision/([^/]+))?", path):
            if found[1] not in (None, "main", "v1", COMMIT):
                return self._refuse("RevisionNotFound", "Invalid rev id")
            siblings = [{"rfilename": n, "size": len(b)} for n, b in {**FILES, **USELESS}.items()]
            said = {"_id": "1", "id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "private": False, "siblings": siblings}
            return self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"}, method)
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            files = {**FILES, **USELESS}.items()
            tree = [{"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in files]
            return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, method)
        if found := re.fullmatch(rf"/datasets/org/sums/resolve/(?:main|v1|{COMMIT})/(.+)", path):
            if found[1] in DATASET:
                return self._file(DATASET[found[1]], method)
            return self._refuse("EntryNotFound", "Entry not found")
        if found := re.fullmatch(rf"/org/tiny/resolve/(?:main|v1|{COMMIT})/(.+)", path):
            body = {**FILES, **USELESS}.get(found[1])
            if body is not None:
                return self._file(body, method)
            return self._refuse("EntryNotFound", "Entry not found")
        return self._refuse("RepoNotFound", "Repository not found")

    def _file(self, body: bytes, method: str) -> None:
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        said = self.headers.get("Range")
        start = int(said.removeprefix("bytes=").split("-")[0]) if said and method == "GET" else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = method == "GET" and len(body) > 100_000 and self.server.cut > 0
        self.server.cut -= cut
        self._send(206 if start else 200, body[start:], headers, method, cut)

    def _refuse(self, code: str, message: str) -> None:
        self._send(404, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message}, "GET")

    def _send(self, status: int, body: bytes, headers: dict[str, str], method: str, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if method == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a free port of the loopback, until the end of the block."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
