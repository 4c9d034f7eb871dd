"""A Hub on the loopback interface, in memory: clients of another process read from it and push."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
COMMIT = "0" * 39 + "1"
"""The commit of what is served from the start."""

LARGE = (".safetensors", ".parquet", ".bin")
"""Endings of files that go through the large file storage."""


@contextmanager
def serve(repositories=None, interrupt=False):
    """Serve repositories in another process; yield the address.

    Args:
        repositories: Folders that are there from the start, `{"org/name": folder}`; a name may
            begin with "datasets/" or "spaces/", and "org/name@refs/pr/1" is what the converter to
            safetensors offers for "org/name", given before it.
        interrupt: Break off in the middle of each large file, but where the rest is asked for.
    """
    named = [f"{name}={folder}" for name, folder in (repositories or {}).items()]
    command = [sys.executable, __file__, *(["--interrupt"] if interrupt else []), *named]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


@dataclass
class Repository:
    """Files of each commit, `{commit: {path: bytes}}`, and where the branches are."""

    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    private: bool = False

    def commit(self, files, name=None):
        told = repr((len(self.commits), sorted((p, digest(b)) for p, b in files.items())))
        name = name or hashlib.sha1(told.encode()).hexdigest()
        self.commits[name], self.branches["main"] = files, name
        return name

    def find(self, revision):
        name = self.branches.get(revision, revision)
        return name if name in self.commits else None


REPOSITORIES = {}  # "models/org/name": Repository
STORAGE = {}  # large files by their SHA-256
INTERRUPT = "--interrupt" in sys.argv
LOCK = Lock()
ROUTES = []


class RefusalError(Exception):
    """An answer that is an error, with the code that the client's messages depend on."""

    def __init__(self, status, code):
        super().__init__(code)
        self.status, self.code = status, code


def route(pattern):
    """Let a function answer the requests `METHOD /path` that match a pattern whole."""

    def register(function):
        ROUTES.append((re.compile(pattern), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """Find the function that answers a request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for its headers to be acknowledged

    def do_GET(self):
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for pattern, function in ROUTES:
                if match := pattern.fullmatch(f"{method} {unquote(url.path)}"):
                    with LOCK:
                        return self.answer(*as_answer(function(self, **match.groupdict())))
            raise RefusalError(404, "NotFound")
        except RefusalError as refusal:
            self.answer(json.dumps({"error": refusal.code}).encode(), refusal.status, refusal.code)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names http.server looks for

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, body, status=200, code=None, headers=None):
        self.send_response(status)
        further = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        for name, value in ({"Content-Length": len(body)} | further | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if INTERRUPT and status == 200 and is_large(self.path):
            body, self.close_connection = body[: len(body) // 2], True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def as_answer(given):
    """Bytes and headers as they are, anything else as JSON."""
    return given if isinstance(given, tuple) else (json.dumps(given).encode(),)


def digest(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def is_large(path):
    return path.endswith(LARGE)


def files_at(kind, name, revision):
    """Return a repository's commit and its files."""
    repository = REPOSITORIES.get(f"{kind or 'models'}/{name}")
    if repository is None:
        raise RefusalError(401, "RepoNotFound")  # as the Hub answers those who are not logged in
    if (commit := repository.find(revision)) is None:
        raise RefusalError(404, "RevisionNotFound")
    return commit, repository.commits[commit]


def entry(path, body):
    told = {"type": "file", "path": path, "size": len(body), "oid": digest(body)}
    if is_large(path):
        large = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        told["lfs"] = large
    return told


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"


@route(r"GET /api/whoami-v2")
def who_am_i(request):
    return {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}}


@route(r"POST /api/validate-yaml")
def validate_card(request):
    return {"errors": [], "warnings": []}


@route(r"POST /api/repos/create")
def create(request):
    asked = json.loads(request.body)
    name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
    kind = f"{asked.get('type') or 'model'}s"
    told = {"url": address_of(request, kind, name), "id": name, "name": name}
    if f"{kind}/{name}" in REPOSITORIES:
        return json.dumps(told).encode(), 409, "RepoExists"
    repository = Repository(
        private=bool(asked.get("private")) or asked.get("visibility") == "private"
    )
    REPOSITORIES[f"{kind}/{name}"] = repository
    repository.commit({".gitattributes": b""})
    return told


def address_of(request, kind, name):
    return f"http://{request.headers['Host']}/{'' if kind == 'models' else kind + '/'}{name}"


@route(rf"GET {API}(/revision/{REVISION})?")
def describe(request, kind, name, revision):
    commit, files = files_at(kind, name, revision or "main")
    siblings = [{"rfilename": path, "size": len(files[path])} for path in sorted(files)]
    private = REPOSITORIES[f"{kind}/{name}"].private
    return {"_id": "0" * 24, "id": name, "sha": commit, "private": private, "siblings": siblings}


@route(rf"GET {API}/refs")
def branches(request, kind, name):
    files_at(kind, name, "main")
    known = REPOSITORIES[f"{kind}/{name}"].branches.items()
    told = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in known]
    return {"branches": told, "tags": [], "converts": []}


@route(rf"GET {API}/discussions")
def discussions(request, kind, name):
    files_at(kind, name, "main")
    refs = [ref for ref in REPOSITORIES[f"{kind}/{name}"].branches if ref.startswith("refs/pr/")]
    told = {"author": {"name": "SFconvertbot"}, "createdAt": DATE, "status": "open"}
    told |= {"title": "Adding `safetensors` variant of this model", "isPullRequest": True}
    told["repo"] = {"name": name, "type": kind.removesuffix("s")}
    all_of = [told | {"num": int(ref.rpartition("/")[2])} for ref in refs]
    return {"discussions": all_of, "count": len(all_of), "start": 0}


@route(rf"GET {API}/commits/{REVISION}")
def commits(request, kind, name, revision):
    newest, _ = files_at(kind, name, revision)
    known = list(REPOSITORIES[f"{kind}/{name}"].commits)
    ids = reversed(known[: known.index(newest) + 1])
    return [{"id": i, "title": "", "message": "", "date": DATE, "authors": []} for i in ids]


@route(rf"GET {API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def tree(request, kind, name, revision, folder):
    _, files = files_at(kind, name, revision)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    below = {path: body for path, body in sorted(files.items()) if path.startswith(prefix)}
    if folder and not below:
        raise RefusalError(404, "EntryNotFound")
    whole = request.query.get("recursive") == "true"
    folders = {str(p) for path in below for p in Path(path).parents if str(p).startswith(prefix)}
    shown = {f for f in folders - {"."} if whole or "/" not in f[len(prefix) :]}
    told = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(shown)]
    return told + [entry(p, b) for p, b in below.items() if whole or "/" not in p[len(prefix) :]]


@route(rf"POST {API}/paths-info/(?P<revision>[^/]+)")
def paths_info(request, kind, name, revision):
    _, files = files_at(kind, name, revision)
    if request.body.startswith(b"{"):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    return [entry(path, files[path]) for path in paths if path in files]


@route(rf"POST {API}/preupload/(?P<revision>[^/]+)")
def preupload(request, kind, name, revision):
    files_at(kind, name, revision)
    paths = [file["path"] for file in json.loads(request.body)["files"]]
    modes = {path: "lfs" if is_large(path) else "regular" for path in paths}
    return {
        "files": [
            {"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()
        ]
    }


@route(r"POST /((?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
def large_files(request, kind, name):
    def told(file):
        there = {"href": f"http://{request.headers['Host']}/storage/{file['oid']}", "header": {}}
        missing = {} if file["oid"] in STORAGE else {"actions": {"upload": there}}
        return {"oid": file["oid"], "size": file["size"]} | missing

    objects = [told(file) for file in json.loads(request.body)["objects"]]
    return {"transfer": "basic", "objects": objects}


@route(r"PUT /storage/(?P<name>[0-9a-f]{64})")
def store(request, name):
    STORAGE[name] = request.body
    return {}


@route(rf"POST {API}/commit/(?P<revision>[^/]+)")
def commit(request, kind, name, revision):
    _, before = files_at(kind, name, revision)
    files = dict(before)
    for line in request.body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        match operation["key"]:
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = STORAGE[value["oid"]]
            case "deletedFile":
                files.pop(value["path"], None)
            case "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {p: body for p, body in files.items() if not p.startswith(prefix)}
    made = REPOSITORIES[f"{kind}/{name}"].commit(files)
    url = f"{address_of(request, kind, name)}/commit/{made}"
    return {"success": True, "commitOid": made, "commitUrl": url}


FILE = rf"(?P<name>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)"


@route(rf"GET /((?P<kind>datasets|spaces)/)?{FILE}")
def download(request, kind, name, revision, path):
    commit, files = files_at(kind, name, revision)
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if path not in files:
        return b'{"error": "Entry not found"}', 404, "EntryNotFound", headers
    body = files[path]
    etag = hashlib.sha256(body).hexdigest() if is_large(path) else digest(body)
    headers["ETag"] = f'"{etag}"'
    if is_large(path):
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": len(body)}
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return body[first : last + 1], 206, None, headers
    return body, 200, None, headers


def read_folder(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    for argument in sys.argv[1 + INTERRUPT :]:
        named, served = argument.split("=", 1)
        named, _, ref = named.partition("@")
        key = named if named.startswith(("datasets/", "spaces/")) else f"models/{named}"
        repository = REPOSITORIES.setdefault(key, Repository())
        if ref:
            repository.branches[ref] = repository.commit(read_folder(served), "2" * 40)
            repository.branches["main"] = COMMIT
        else:
            repository.commit(read_folder(served), COMMIT)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(listening.server_address[1], flush=True)
    listening.serve_forever()
