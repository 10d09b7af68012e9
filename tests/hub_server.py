"""A hub of models on loopback, in a thread: the few calls of its API that huggingface_hub makes to fetch and to upload.

with Hub() as hub:
    hub.repos["me/model"] = {"main": {"config.json": b"{}"}}
    subprocess.run(…, env=hub.environment(tmp_path))
"""

import base64
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "hf_loopback"  # the one that may write, and read what is private


class Hub:
    """repos: {"owner/name": {revision: {file: content}}}. refused: {"owner/name": (status, X-Error-Code)}."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []

    def __enter__(self) -> "Hub":
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a process that takes this for the hub, with an empty cache in home and no token."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HOME": str(home / "hf")}
        own |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
        return clean | own | more


def commit_of(files: dict[str, bytes]) -> str:
    """The hash that stands for a commit: 40 digits."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Quiet."""

    def answer(self, body: object = b"", status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; None, with the refusal sent, where they cannot be had."""
        if repo in self.hub.refused and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, code = self.hub.refused[repo]
            return self.answer({"error": "refused"}, status, **({"X_Error_Code": code} if code else {}))
        if repo not in self.hub.repos:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        for branch, files in self.hub.repos[repo].items():
            if revision in (branch, commit_of(files)):
                return files
        return self.answer({"error": "not found"}, 404, X_Error_Code="RevisionNotFound")

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        revision = rest[1] if len(rest) > 1 else "main"
        files = self.files(f"{owner}/{name}", revision)
        if files is None:
            return
        commit = commit_of(files)
        if rest[:1] == ["resolve"]:
            content = files.get("/".join(rest[2:]))
            if content is None:
                self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            else:
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)
        elif rest[:1] == ["tree"]:
            entries = ({"type": "file", "path": f, "size": len(c), "oid": commit_of({f: c})} for f, c in files.items())
            self.answer(list(entries))
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings, "private": False, "tags": []})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            there = repo in self.hub.repos
            self.hub.repos.setdefault(repo, {"main": {}})
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}"}, 409 if there else 200)
        owner, name, what, revision = path.removeprefix("/api/models/").split("/", 3)
        files = self.files(f"{owner}/{name}", revision)
        if files is None:
            return None
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in names]}
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"http://{self.headers['Host']}/{owner}/{name}/commit/{commit_of(files)}"
        return self.answer({"success": True, "commitOid": commit_of(files), "commitUrl": url})
