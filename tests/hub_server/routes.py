"""The hub's routes: what each one reads, changes and answers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from tests.hub_server.store import Files, HubError, Readable, Repo, Store, copy, git_oid, lfs_pointer

LARGE = (".gguf", ".safetensors", ".bin", ".pt", ".parquet", ".sqlite", ".db")
USER, ORGANISATIONS = "tester", ("org",)


@dataclass
class Request:
    """A request without its body, which is read by the route."""

    method: str
    path: str  # without the query
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: Readable
    names: dict[str, str] = field(default_factory=dict)  # what the route's pattern found

    def json(self) -> dict[str, Any]:
        value = json.loads(self._all() or b"{}")
        if not isinstance(value, dict):
            raise HubError(400, "", "a JSON object expected")
        return value

    def json_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._all().splitlines() if line.strip()]

    def _all(self) -> bytes:
        return b"".join(iter(lambda: self.body.read(1 << 20), b""))

    @property
    def revision(self) -> str:
        return unquote(self.names["revision"])


@dataclass
class Answer:
    value: object = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None  # sent instead of `value`


@dataclass
class Hub:
    """`chunk_bytes`: larger objects are uploaded in parts of this size. `token`: the only one that may write."""

    store: Store
    url: str
    token: str
    chunk_bytes: int = 20_000_000
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def may_write(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise HubError(401, "", "Invalid credentials in Authorization header")

    def repo(self, request: Request) -> Repo:
        """The repo that a path names; a private one is there only for who may see it.

        Who is not known is told the same of one that is private and one that is not there.
        """
        kind = {"models": "model", "datasets": "dataset", None: "model"}[request.names.get("kind")]
        is_known = request.headers.get("authorization") == f"Bearer {self.token}"
        try:
            repo = self.store.repo(kind, request.names["repo"])
        except HubError as error:
            raise error if is_known else HubError(401, error.code, error.message) from None
        if repo.private and not is_known:
            raise HubError(401, "RepoNotFound", "Repository not found")
        return repo

    def signed(self, path: str) -> str:
        """An address that may be used without a token."""
        return f"{self.url}{path}?X-Signature={self._signature(path)}"

    def check_signed(self, request: Request) -> None:
        if not hmac.compare_digest(request.query.get("X-Signature", ""), self._signature(request.path)):
            raise HubError(403, "", "SignatureDoesNotMatch")
        if "authorization" in request.headers:
            raise HubError(400, "", "Only one auth mechanism allowed")

    def _signature(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), "sha256").hexdigest()


def index(hub: Hub, request: Request) -> Answer:
    repos = [repo for repo in hub.store.repos() if not repo.private]
    return Answer(
        [{"id": repo.id, "type": repo.kind, "api": f"{hub.url}/api/{repo.kind}s/{repo.id}"} for repo in repos]
    )


def whoami(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    access = {"accessToken": {"displayName": "test", "role": "write"}}
    orgs = [{"name": name} for name in ORGANISATIONS]
    return Answer({"type": "user", "name": USER, "auth": access, "orgs": orgs})


def create_repo(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    asked = request.json()
    repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
    kind = asked.get("type") or "model"
    url = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    if repo_id.split("/")[0] not in (USER, *ORGANISATIONS):
        raise HubError(403, "", f"You don't have the rights to create a {kind} under this namespace")
    hub.store.create_repo(kind, repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    return Answer({"url": url, "name": repo_id})


def settings(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    asked = request.json()
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.repo(request).set(private=private)
    return Answer({"private": private})


def validate_yaml(hub: Hub, request: Request) -> Answer:
    content = request.json()["content"]
    errors = []
    if head := re.match(r"\A---\n(.*?\n)---\n", content, re.DOTALL):
        try:
            yaml.safe_load(head[1])
        except yaml.YAMLError as error:
            errors.append({"message": f"the metadata is no YAML: {error}"})
    if errors:
        return Answer({"errors": errors, "warnings": []}, status=400)
    return Answer({"errors": [], "warnings": [] if head else [{"message": "empty or missing yaml metadata"}]})


def info(hub: Hub, request: Request) -> Answer:
    repo = hub.repo(request)
    oid = repo.commit_of(unquote(request.names.get("revision") or "main"))
    files = repo.files(oid)
    siblings = [{"rfilename": path} for path in sorted(files)]
    if request.query.get("blobs"):
        siblings = [{"rfilename": path, **_described(files[path], "blobId")} for path in sorted(files)]
    described = {"id": repo.id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": [], "downloads": 0}
    return Answer(described | ({"modelId": repo.id} if repo.kind == "model" else {}))


def refs(hub: Hub, request: Request) -> Answer:
    found = hub.repo(request).refs()
    names = {"branches": "heads", "tags": "tags"}
    listed = {
        kind: [{"name": n, "ref": f"refs/{names[kind]}/{n}", "targetCommit": c} for n, c in found[kind].items()]
        for kind in names
    }
    return Answer({**listed, "converts": []})


def tree(hub: Hub, request: Request) -> Answer:
    files = hub.repo(request).files(request.revision)
    below = unquote(request.names.get("path") or "").strip("/")
    wanted = {p: f for p, f in files.items() if not below or PurePosixPath(below) in PurePosixPath(p).parents}
    if below and not wanted:
        raise HubError(404, "EntryNotFound", f"{below} does not exist")
    folders = {str(folder) for path in wanted for folder in PurePosixPath(path).parents} - {".", below}
    entries = [{"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())} for path in folders]
    entries += [{"type": "file", "path": path, **_described(wanted[path], "oid")} for path in wanted]
    if request.query.get("recursive", "").lower() not in ("true", "1"):
        entries = [entry for entry in entries if str(PurePosixPath(str(entry["path"])).parent) == (below or ".")]
    return Answer(sorted(entries, key=lambda entry: str(entry["path"])))


def paths_info(hub: Hub, request: Request) -> Answer:
    files = hub.repo(request).files(request.revision)
    asked = request.json()["paths"]
    return Answer([{"type": "file", "path": p, **_described(files[p], "oid")} for p in asked if p in files])


def commits(hub: Hub, request: Request) -> Answer:
    repo = hub.repo(request)
    oid: str | None = repo.commit_of(request.revision)
    found = []
    while oid:
        commit = repo.commit(oid)
        when = "2026-01-01T00:00:00.000Z"  # nothing here depends on the clock
        found.append({"id": oid, "title": commit["title"], "message": commit["description"], "date": when})
        found[-1] |= {"authors": []}
        oid = commit["parent"]
    return Answer(found)


def preupload(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    there = hub.repo(request).files(request.revision)
    asked = request.json()["files"]
    modes = {file["path"]: _upload_mode(file) for file in asked}
    return Answer(
        {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                | ({"oid": there[path]["oid"]} if path in there else {})
                for path, mode in modes.items()
            ]
        }
    )


def _upload_mode(file: dict[str, Any]) -> str:
    sample = base64.b64decode(file.get("sample", ""))
    large = file["path"].endswith(LARGE) or file["size"] > 10_000_000 or b"\0" in sample
    return "lfs" if large and file["size"] else "regular"


def lfs_batch(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    repo = hub.repo(request)
    objects = []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        found: dict[str, Any] = {"oid": oid, "size": size}
        if not hub.store.object(oid).is_file():
            count = math.ceil(size / hub.chunk_bytes)
            header = {f"{n:05}": hub.signed(f"/_storage/{oid}/{n}") for n in range(1, count + 1)}
            upload: dict[str, Any] = {"href": hub.signed(f"/_storage/{oid}")}
            if count > 1:
                upload = {
                    "href": hub.signed(f"/_complete/{oid}/{count}"),
                    "header": header | {"chunk_size": str(hub.chunk_bytes)},
                }
            prefix = "datasets/" if repo.kind == "dataset" else ""
            verify = {"href": f"{hub.url}/{prefix}{repo.id}.git/info/lfs/objects/verify"}
            found["actions"] = {"upload": upload, "verify": verify}
        objects.append(found)
    return Answer({"transfer": "basic", "objects": objects})


def lfs_upload(hub: Hub, request: Request) -> Answer:
    """A whole object. It is there only when its bytes are those that its oid names."""
    hub.check_signed(request)
    oid, found = request.names["oid"], hashlib.sha256()
    partial = hub.store.part(oid, 0)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as stream:
        copy(request.body, stream, found.update)
    if found.hexdigest() != oid:
        raise HubError(400, "", "BadDigest: the bytes are not the object that was announced")
    hub.store.object(oid).parent.mkdir(parents=True, exist_ok=True)
    partial.replace(hub.store.object(oid))
    return Answer(headers={"ETag": f'"{oid}"'})


def lfs_part(hub: Hub, request: Request) -> Answer:
    hub.check_signed(request)
    part, found = hub.store.part(request.names["oid"], int(request.names["number"])), hashlib.md5(usedforsecurity=False)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as stream:
        copy(request.body, stream, found.update)
    return Answer(headers={"ETag": f'"{found.hexdigest()}"'})


def lfs_complete(hub: Hub, request: Request) -> Answer:
    hub.check_signed(request)
    count = int(request.names["number"])
    if [part["partNumber"] for part in request.json()["parts"]] != list(range(1, count + 1)):
        raise HubError(400, "", "InvalidPart")
    if not hub.store.object(request.names["oid"]).is_file():
        hub.store.join_parts(request.names["oid"], count)
    return Answer({})


def lfs_verify(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    asked = request.json()
    path = hub.store.object(asked["oid"])
    if not path.is_file() or path.stat().st_size != asked["size"]:
        raise HubError(404, "", "no such object")
    return Answer({})


def commit(hub: Hub, request: Request) -> Answer:
    """All operations of the request become one commit, or none does."""
    hub.may_write(request)
    repo = hub.repo(request)
    header, *operations = request.json_lines()
    if request.revision != "main":
        raise HubError(400, "", "only main takes commits here")
    summary, description = header["value"]["summary"], header["value"].get("description", "")
    with hub.store.lock:
        parent = repo.commit_of("main")
        if header["value"].get("parentCommit") not in (None, parent):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files(parent))
        for operation in operations:
            _apply(hub.store, repo, files, operation["key"], operation["value"])
        oid = repo.add_commit(files, parent=parent, title=summary, description=description)
    url = f"{hub.url}/{repo.id}/commit/{oid}"
    return Answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _apply(store: Store, repo: Repo, files: Files, kind: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if kind == "file":
        files[path] = repo.add_blob(base64.b64decode(value["content"]))
    elif kind == "lfsFile":
        if not store.object(value["oid"]).is_file():
            raise HubError(400, "", f"{path}: its LFS object was not uploaded")
        files[path] = store.described(value["oid"])
    elif kind == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
    else:
        raise HubError(400, "", f"unknown operation {kind}")


def tag(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    with hub.store.lock:
        hub.repo(request).set_tag(request.json()["tag"], request.revision)
    return Answer({})


def delete_tag(hub: Hub, request: Request) -> Answer:
    hub.may_write(request)
    with hub.store.lock:
        hub.repo(request).delete_tag(request.revision)
    return Answer({})


def resolve(hub: Hub, request: Request) -> Answer:
    repo = hub.repo(request)
    if repo.gated:
        raise HubError(403, "GatedRepo", f"Access to {repo.kind} {repo.id} is restricted")
    oid = repo.commit_of(request.revision)
    file = repo.files(oid).get(unquote(request.names["path"]))
    if file is None:
        raise HubError(404, "EntryNotFound", "Entry not found")
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes", "ETag": f'"{file.get("sha256", file["oid"])}"'}
    if sha256 := file.get("sha256"):
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(file["size"])}
    path = hub.store.object(sha256) if sha256 else repo.folder / "blobs" / file["oid"]
    return Answer(file=path, headers=headers | {"Content-Type": "application/octet-stream"})


def _described(file: dict[str, Any], name: str) -> dict[str, Any]:
    """A file as listings have it; a large one with its hash."""
    described = {name: file["oid"], "size": file["size"]}
    if sha256 := file.get("sha256"):
        pointer = len(lfs_pointer(sha256, file["size"]))
        described["lfs"] = {"oid": sha256, "sha256": sha256, "size": file["size"], "pointerSize": pointer}
    return described


Route = tuple[str, str, re.Pattern[str], Callable[[Hub, Request], Answer]]  # name, methods, path, what it does
_API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_GIT = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
_OID = r"(?P<oid>[0-9a-f]{64})"
_REVISION = r"(?P<revision>[^/]+)"


def _route(name: str, methods: str, path: str, does: Callable[[Hub, Request], Answer]) -> Route:
    return name, methods, re.compile(path), does


ROUTES: list[Route] = [
    _route("index", "GET", "/", index),
    _route("whoami", "GET", "/api/whoami-v2", whoami),
    _route("create-repo", "POST", "/api/repos/create", create_repo),
    _route("validate-yaml", "POST", "/api/validate-yaml", validate_yaml),
    _route("settings", "PUT", f"{_API}/settings", settings),
    _route("refs", "GET", f"{_API}/refs", refs),
    _route("tree", "GET", f"{_API}/tree/{_REVISION}(?P<path>/.+)?", tree),
    _route("paths-info", "POST", f"{_API}/paths-info/{_REVISION}", paths_info),
    _route("commits", "GET", f"{_API}/commits/{_REVISION}", commits),
    _route("preupload", "POST", f"{_API}/preupload/{_REVISION}", preupload),
    _route("commit", "POST", f"{_API}/commit/{_REVISION}", commit),
    _route("tag", "POST", f"{_API}/tag/{_REVISION}", tag),
    _route("delete-tag", "DELETE", f"{_API}/tag/{_REVISION}", delete_tag),
    _route("info", "GET", f"{_API}(?:/revision/{_REVISION})?", info),
    _route("lfs-batch", "POST", rf"{_GIT}\.git/info/lfs/objects/batch", lfs_batch),
    _route("lfs-verify", "POST", rf"{_GIT}\.git/info/lfs/objects/verify", lfs_verify),
    _route("lfs-upload", "PUT", f"/_storage/{_OID}", lfs_upload),
    _route("lfs-part", "PUT", rf"/_storage/{_OID}/(?P<number>[1-9]\d*)", lfs_part),
    _route("lfs-complete", "POST", rf"/_complete/{_OID}/(?P<number>[1-9]\d*)", lfs_complete),
    _route("resolve", "GET HEAD", f"{_GIT}/resolve/{_REVISION}/(?P<path>.+)", resolve),
]


def _nothing(hub: Hub, request: Request) -> Answer:
    raise HubError(404, "", "no such route")


def find_route(request: Request) -> tuple[str, Callable[[Hub, Request], Answer]]:
    """The route's name, and what it does."""
    for name, methods, pattern, does in ROUTES:
        if request.method in methods.split() and (match := pattern.fullmatch(request.path)):
            request.names = {key: value for key, value in match.groupdict().items() if value is not None}
            return name, does
    return "unknown", _nothing


def parse_query(text: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(text).items()}
