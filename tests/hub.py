"""A Hub on the loopback interface that serves folders, for clients in another process."""

import hashlib
import json
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@contextmanager
def serve(repositories):
    """Serve model repositories, `{"org/name": folder}`, in another process; yield the address."""
    named = [f"{name}={folder}" for name, folder in repositories.items()]
    command = [sys.executable, __file__, *named]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


class Handler(BaseHTTPRequestHandler):
    """Answer what the client of the Hub asks before and while it downloads."""

    protocol_version = "HTTP/1.1"
    repositories = {}

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.repositories:
            return self.refuse("RepoNotFound", 401)
        folder = self.repositories[repository]
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        if api:
            return self.describe(repository, rest, files)
        path = files.get("/".join(rest[2:]))  # after "resolve" and the revision
        return self.answer(path.read_bytes()) if path else self.refuse("EntryNotFound", 404)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def describe(self, repository, rest, files):
        if rest[:1] == ["tree"]:
            return self.answer(json.dumps([entry(name, path) for name, path in files.items()]))
        names = [{"rfilename": name} for name in files]
        return self.answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": names}))

    def answer(self, body, code=200, **headers):
        body = body if isinstance(body, bytes) else body.encode()
        etag = hashlib.sha256(body).hexdigest()
        self.send_response(code)
        fixed = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)}
        for name, value in (fixed | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, reason, code):
        self.answer(json.dumps({"error": reason}), code, **{"X-Error-Code": reason})

    def log_message(self, *_):
        pass


def entry(name, path):
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    Handler.repositories = {name: Path(folder) for name, folder in given.items()}
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(listening.server_address[1], flush=True)
    listening.serve_forever()
