"""A server that speaks as much of the Hugging Face Hub's protocol as upload, download and repository info need.

It is our own reading of the protocol, made by watching ``huggingface_hub`` 2.4: what passes here is likely, not certain,
to pass on the real Hub. No xet (set HF_HUB_DISABLE_XET=1). Repositories live in memory; large files take the LFS way,
and their downloads are redirected to another host name (localhost instead of 127.0.0.1), as the client keeps the Hub's
own headers only when the host changes.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from urllib.parse import unquote, urlsplit

LFS_FROM_BYTES = 10_000
SECONDS_TO_STOP = 0.02  # at most; the default of half a second was most of what a short test took
REPOSITORY = r"(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """``commits``: oid -> {path: content}, in order; the last one is the head of ``main``."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add_commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(
            f"{len(self.commits)}{sorted((k, git_sha1(v)) for k, v in files.items())}".encode()
        ).hexdigest()
        self.commits[oid] = files
        self.branches["main"] = oid
        return oid

    def commit_of(self, revision: str) -> str | None:
        known = self.branches | self.tags | {oid: oid for oid in self.commits}
        return known.get(revision)


@dataclass
class Hub:
    """What the server knows, open to a test. ``write_tokens`` may write, ``read_tokens`` only read."""

    endpoint: str = ""
    elsewhere: str = ""  # the same server by another host name
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    write_tokens: set[str] = field(default_factory=lambda: {"hf_writetoken"})
    read_tokens: set[str] = field(default_factory=lambda: {"hf_readtoken"})
    requests: list[str] = field(default_factory=list)  # "METHOD path", in order
    tokens: set[str] = field(default_factory=set)  # that anybody sent
    failures: dict[str, list[int]] = field(
        default_factory=dict
    )  # part of a path -> statuses of the next requests
    claims: dict[str, int | None] = field(
        default_factory=dict
    )  # path -> size that is listed in place of the real one
    names_commits: bool = True  # False: information about a repository lacks its commit, as a mirror's may
    accounts: dict[str, dict] = field(default_factory=dict)  # token -> what its account tells of itself
    spoil: set[str] = field(default_factory=set)  # paths that arrive damaged
    changes: threading.Lock = field(default_factory=threading.Lock)  # one at a time: a commit is atomic

    def add_repo(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> str:
        repo = self.repos.setdefault((kind, name), Repo(private))
        return repo.add_commit(files)

    @property
    def commits_made(self) -> int:
        return sum("/commit/" in request for request in self.requests)


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        self.status, self.message, self.code, self.more = status, message, code, more


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """The tests' output stays readable."""

    def answer(self, body: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command in ("POST", "PUT")
            else b""
        )
        self.hub.requests.append(f"{self.command} {path}")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.tokens |= {self.token} - {""}
        try:
            for part, statuses in self.hub.failures.items():
                if part in path and statuses:
                    raise Refused(statuses.pop(0), f"made to fail, token {self.token}")
            for (method, pattern), do in ROUTES.items():
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    with self.hub.changes if method == "POST" else contextlib.nullcontext():
                        return do(self, **match.groupdict())
            raise Refused(404, f"no route for {self.command} {path}")
        except Refused as refused:
            self.answer(
                {"error": refused.message, **refused.more},
                refused.status,
                {"X-Error-Code": refused.code, "X-Error-Message": refused.message},
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def whoami(self) -> None:
        if self.token not in self.hub.write_tokens | self.hub.read_tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        self.answer(self.hub.accounts.get(self.token, {"name": "tester", "type": "user"}))

    def find(self, kind: str, repo: str, write: bool = False) -> Repo:
        known = self.token in self.hub.write_tokens | self.hub.read_tokens
        if self.token and not known:
            raise Refused(401, "Invalid credentials in Authorization header")
        found = self.hub.repos.get((kind, repo))
        if found is None or (found.private and not known):
            raise Refused(404 if known else 401, "Repository not found", "RepoNotFound")
        if write:
            self.need_write()
        return found

    def need_write(self) -> None:
        if self.token not in self.hub.write_tokens:
            known = self.token in self.hub.read_tokens
            raise Refused(
                403 if known else 401, "You don't have the rights" if known else "Invalid credentials"
            )

    def files_at(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.commit_of(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        found = self.find(kind, repo)
        commit, files = self.files_at(found, revision)
        sized = "blobs=true" in urlsplit(self.path).query.lower()
        self.answer(
            {
                "id": repo,
                "sha": commit if self.hub.names_commits else None,
                "private": found.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [
                    {"rfilename": name, "size": self.hub.claims.get(name, len(content))}
                    if sized
                    else {"rfilename": name}
                    for name, content in sorted(files.items())
                ],
            }
        )

    def tree(self, kind: str, repo: str, revision: str, folder: str | None = None) -> None:
        _, files = self.files_at(self.find(kind, repo), revision)
        start, recursive = (
            f"{folder}/" if folder else "",
            "recursive=true" in urlsplit(self.path).query.lower(),
        )
        inside = {name: content for name, content in files.items() if name.startswith(start)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        folders = {
            start + name.removeprefix(start).partition("/")[0]
            for name in inside
            if "/" in name.removeprefix(start)
        }
        entries: list[dict] = [
            {"type": "directory", "path": name, "size": 0, "oid": git_sha1(name.encode())}
            for name in sorted(folders)
        ]
        for name, content in sorted(inside.items()):
            if "/" in name.removeprefix(start) and not recursive:
                continue
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if len(content) >= LFS_FROM_BYTES:
                entry["lfs"] = {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            entries.append(entry)
        self.answer(entries)

    def refs(self, kind: str, repo: str) -> None:
        found = self.find(kind, repo)
        self.answer(
            {
                "converts": [],
                "branches": [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                    for name, oid in found.branches.items()
                ],
                "tags": [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
                    for name, oid in found.tags.items()
                ],
            }
        )

    def resolve(self, repo: str, revision: str, name: str, kind: str = "model") -> None:
        commit, files = self.files_at(self.find(kind, repo), revision)
        if name not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content, headers = files[name], {"X-Repo-Commit": commit}
        if len(content) < LFS_FROM_BYTES:
            return self.answer(content, headers=headers | {"ETag": f'"{git_sha1(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        self.hub.lfs[oid] = content
        host = self.hub.elsewhere
        self.answer(
            status=302,
            headers=headers
            | {
                "X-Linked-Etag": f'"{oid}"',
                "X-Linked-Size": str(len(content)),
                "ETag": f'"{git_sha1(content)}"',
                "Location": f"{host}/lfs/{oid}",
            },
        )

    def lfs_get(self, oid: str) -> None:
        content = self.hub.lfs[oid]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.answer(content[start:], 206 if start else 200, {"ETag": f'"{oid}"'})

    def lfs_put(self, oid: str) -> None:
        self.hub.lfs[oid] = self.body
        self.answer({})

    def lfs_batch(self, repo: str) -> None:
        self.find("model", repo, write=True)
        host = self.hub.elsewhere
        objects = [
            item
            if item["oid"] in self.hub.lfs  # known already: no action
            else {**item, "actions": {"upload": {"href": f"{host}/lfs/{item['oid']}"}}}
            for item in json.loads(self.body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def create(self) -> None:
        self.need_write()
        asked = json.loads(self.body)
        name, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        if (kind, name) in self.hub.repos:
            raise Refused(409, "You already created this model repo", url=f"{self.hub.endpoint}/{name}")
        first = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.hub.add_repo(name, first, kind, private=asked.get("visibility") == "private")
        self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        self.find(kind, repo, write=True)
        self.answer(
            {
                "files": [
                    {
                        "path": f["path"],
                        "shouldIgnore": False,
                        "uploadMode": "lfs" if f["size"] >= LFS_FROM_BYTES else "regular",
                    }
                    for f in json.loads(self.body)["files"]
                ]
            }
        )

    def commit(self, kind: str, repo: str, revision: str) -> None:
        found = self.find(kind, repo, write=True)
        head, files = self.files_at(found, revision)
        files = dict(files)
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                raise Refused(412, "The parent commit is not the head")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        for name in self.hub.spoil & set(files):
            files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        oid = found.add_commit(files)
        self.answer({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def tag(self, kind: str, repo: str, revision: str) -> None:
        found = self.find(kind, repo, write=True)
        name = json.loads(self.body)["tag"]
        if name in found.tags:
            raise Refused(409, "Tag exists already")
        found.tags[name] = self.files_at(found, revision)[0]
        self.answer({})


ROUTES = {
    ("GET", "/api/whoami-v2"): Handler.whoami,
    ("POST", "/api/validate-yaml"): lambda self: self.answer({"errors": [], "warnings": []}),
    ("POST", "/api/repos/create"): Handler.create,
    ("GET", f"/api/{REPOSITORY}"): Handler.info,
    ("GET", f"/api/{REPOSITORY}/revision/(?P<revision>.+)"): Handler.info,
    ("GET", f"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?"): Handler.tree,
    ("GET", f"/api/{REPOSITORY}/refs"): Handler.refs,
    ("POST", f"/api/{REPOSITORY}/preupload/(?P<revision>.+)"): Handler.preupload,
    ("POST", f"/api/{REPOSITORY}/commit/(?P<revision>.+)"): Handler.commit,
    ("POST", f"/api/{REPOSITORY}/tag/(?P<revision>.+)"): Handler.tag,
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"): Handler.lfs_batch,
    ("GET", "/lfs/(?P<oid>[0-9a-f]+)"): Handler.lfs_get,
    ("HEAD", "/lfs/(?P<oid>[0-9a-f]+)"): Handler.lfs_get,
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)"): Handler.lfs_put,
}
for _method in ("GET", "HEAD"):
    ROUTES[
        _method, r"/(?:(?P<kind>dataset)s/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"
    ] = lambda self, kind, **found: self.resolve(kind=kind or "model", **found)


@contextlib.contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[Hub]:
    """A running hub on a free port, of loopback if nothing else is said."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer((address, 0), handler)
    hub.endpoint = f"http://{address}:{server.server_port}"
    other_name = (
        "localhost" if address == "127.0.0.1" else int(IPv4Address(address))
    )  # 2886795265 is 172.17.0.1
    hub.elsewhere = f"http://{other_name}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(SECONDS_TO_STOP,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
