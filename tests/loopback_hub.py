"""A Hugging Face Hub in this process, for the real client: repositories are created, pushed to and read."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
import yaml
from card_rules import card_errors
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

WRITER, READER = "hf_writer", "hf_reader"
USERS = {WRITER: "user", READER: "other"}
Handler = Callable[[Request], Awaitable[Response]]
_LFS_SUFFIXES = (".safetensors", ".onnx", ".png", ".jpg")


@dataclass
class Repo:
    """A repository: commits are sha -> {path: content}, branches name -> sha."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=lambda: {"secrets": {}, "variables": {}})
    hardware: str = "cpu-basic"

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{message}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha1(content).digest())
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.response = JSONResponse({"error": message}, status, headers)


class LoopbackHub:
    """The Hub's state and its requests in order; `broken_uploads` LFS uploads answer with `broken_status`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken_uploads = 0
        self.broken_status = 500
        self.before_commit = lambda: None
        self.url = ""

    def app(self) -> Starlette:
        repo = "/api/{kind}s/{owner}/{name}"
        routes = {
            "GET /api/whoami-v2": self.whoami,
            "POST /api/repos/create": self.create,
            "POST /api/validate-yaml": self.validate_yaml,
            f"POST {repo}/preupload/{{revision:path}}": self.preupload,
            f"POST {repo}/commit/{{revision:path}}": self.commit,
            f"POST {repo}/hardware": self.hardware,
            f"POST {repo}/{{setting}}": self.setting,
            f"POST {repo}/branch/{{branch:path}}": self.branch,
            f"GET {repo}/tree/{{revision}}": self.tree,
            f"GET {repo}/tree/{{revision}}/{{path:path}}": self.tree,
            f"GET {repo}/revision/{{revision:path}}": self.info,
            f"GET {repo}": self.info,
            "PUT /objects/{oid}": self.upload,
            "POST /verify": self.verify,
            "POST /{kind}s/{owner}/{name}.git/info/lfs/objects/batch": self.lfs_batch,
            "POST /{owner}/{name}.git/info/lfs/objects/batch": self.lfs_batch,
            "GET /{kind}s/{owner}/{name}/resolve/{revision}/{path:path}": self.resolve,
            "GET /{owner}/{name}/resolve/{revision}/{path:path}": self.resolve,
        }
        return Starlette(routes=[self._route(*place.split(" "), handler) for place, handler in routes.items()])

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            try:
                return await handler(request)
            except HubError as error:
                return error.response

        return Route(path, endpoint, methods=[method])

    def _user(self, request: Request, required: bool = False) -> str | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if (given or required) and given not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(given)

    def _repo(self, request: Request, write: bool = False) -> tuple[str, str, Repo]:
        """Return page, id and repository; a private one does not exist for others, as on the real Hub."""
        kind = request.path_params.get("kind") or "model"
        owner = request.path_params["owner"]
        repo_id = f"{owner}/{request.path_params['name']}"
        user, repo = self._user(request), self.repos.get((kind, repo_id))
        if repo is None or (repo.private and user != owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner and "create_pr" not in request.query_params:
            raise HubError(403 if user else 401, "Forbidden: you have no write access")
        return self._page(kind, repo_id), repo_id, repo

    def _page(self, kind: str, repo_id: str) -> str:
        return f"{self.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"

    def _sha(self, repo: Repo, revision: str) -> str:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    async def whoami(self, request: Request) -> Response:
        user = self._user(request, required=True)
        return JSONResponse({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    async def create(self, request: Request) -> Response:
        user, asked = self._user(request, required=True), await request.json()
        kind, owner = asked.get("type") or "model", asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        url = self._page(kind, repo_id)
        if owner != user:
            raise HubError(403, "You don't have the rights to create a repository under this namespace")
        if (kind, repo_id) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.repos[kind, repo_id] = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return JSONResponse({"url": url, "name": repo_id, "id": repo_id, "private": private})

    async def validate_yaml(self, request: Request) -> Response:
        asked = await request.json()
        errors = [{"message": message} for message in card_errors(asked["repoType"], asked["content"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def preupload(self, request: Request) -> Response:
        _, _, repo = self._repo(request, write=True)
        present = repo.commits[self._sha(repo, request.path_params["revision"])]
        answer = []
        for path in [file["path"] for file in (await request.json())["files"]]:
            mode = "lfs" if path.endswith(_LFS_SUFFIXES) else "regular"
            oid = _oid(path, present[path]) if path in present else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answer})

    async def lfs_batch(self, request: Request) -> Response:
        self._repo(request)
        objects = []
        for wanted in (await request.json())["objects"]:
            upload, verify = f"{self.url}/objects/{wanted['oid']}", f"{self.url}/verify"
            actions = {"actions": {"upload": {"href": upload}, "verify": {"href": verify}}}
            objects.append(wanted | ({} if wanted["oid"] in self.objects else actions))
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def upload(self, request: Request) -> Response:
        content = await request.body()
        if self.broken_uploads > 0:
            self.broken_uploads -= 1
            return Response(status_code=self.broken_status)
        if hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            return Response(status_code=400)
        self.objects[request.path_params["oid"]] = content
        return Response(status_code=200)

    async def verify(self, request: Request) -> Response:
        return Response(status_code=200 if (await request.json())["oid"] in self.objects else 404)

    async def commit(self, request: Request) -> Response:
        self.before_commit()
        page, _, repo = self._repo(request, write=True)
        branch = request.path_params["revision"]
        parent = self._sha(repo, branch)
        files, header = dict(repo.commits[parent]), {}
        for item in map(json.loads, (await request.body()).splitlines()):
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                content = self.objects[value["oid"]] if key == "lfsFile" else base64.b64decode(value["content"])
                files[value["path"]] = content
        if header.get("parentCommit", parent) != parent:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        kind = request.path_params["kind"]
        if errors := card_errors(kind, files.get("README.md", b"").decode()):
            raise HubError(400, f"Invalid metadata in README.md: {errors}")
        number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
        create_pr = "create_pr" in request.query_params
        sha = repo.commit(f"refs/pr/{number}" if create_pr else branch, files, header["summary"])
        pull_request = f"{page}/discussions/{number}" if create_pr else None
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}"}
        return JSONResponse(answer | {"pullRequestUrl": pull_request})

    async def branch(self, request: Request) -> Response:
        _, _, repo = self._repo(request, write=True)
        repo.branches.setdefault(request.path_params["branch"], repo.branches["main"])
        return JSONResponse({})

    async def setting(self, request: Request) -> Response:
        """Add a secret or a variable; only variables are given back."""
        _, _, repo = self._repo(request, write=True)
        setting = request.path_params["setting"]
        if request.path_params["kind"] != "space" or setting not in repo.settings:
            raise HubError(404, "Not found")
        asked = await request.json()
        repo.settings[setting][asked["key"]] = asked["value"]
        return JSONResponse({key: {"key": key, "value": value} for key, value in repo.settings["variables"].items()})

    async def hardware(self, request: Request) -> Response:
        _, _, repo = self._repo(request, write=True)
        repo.hardware = (await request.json())["flavor"]
        if repo.hardware == "a100-large":
            raise HubError(402, "You must have a credit card on file")
        hardware = {"current": None, "requested": repo.hardware}
        return JSONResponse({"stage": "NO_APP_FILE", "hardware": hardware, "storage": None})

    async def info(self, request: Request) -> Response:
        _, repo_id, repo = self._repo(request)
        sha = self._sha(repo, request.path_params.get("revision", "main"))
        files = repo.commits[sha]
        card = yaml.safe_load(files["README.md"].decode().split("---")[1]) if "README.md" in files else {}
        known = {key: card[key] for key in ("pipeline_tag", "library_name", "tags") if key in card}
        identity = {"_id": sha[:24], "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": sha}
        siblings = [{"rfilename": path} for path in files]
        state = {"private": repo.private, "siblings": siblings, "cardData": card, "gated": False}
        return JSONResponse(identity | known | state)

    async def tree(self, request: Request) -> Response:
        """Return the files and folders right below a path, or with recursive=true all files below it."""
        _, _, repo = self._repo(request)
        below = f"{request.path_params['path']}/" if request.path_params.get("path") else ""
        recursive = request.query_params.get("recursive", "").lower() == "true"
        entries: dict[str, dict] = {}
        for path, content in repo.commits[self._sha(repo, request.path_params["revision"])].items():
            first, *deeper = path.removeprefix(below).split("/")
            if path.startswith(below) and deeper and not recursive:
                folder = below + first
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": _blob_id(folder.encode())}
            elif path.startswith(below):
                entries[path] = _entry(path, content)
        return JSONResponse(list(entries.values()))

    async def resolve(self, request: Request) -> Response:
        _, _, repo = self._repo(request)
        sha, path = self._sha(repo, request.path_params["revision"]), request.path_params["path"]
        if path not in repo.commits[sha]:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, content)}"'}
        return Response(content, headers=headers, media_type="application/octet-stream")


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if path.endswith(_LFS_SUFFIXES):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
    return entry


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(_LFS_SUFFIXES) else _blob_id(content)


@contextmanager
def serve_hub() -> Iterator[LoopbackHub]:
    """Run a Hub on a free port of the loopback interface."""
    hub = LoopbackHub()
    server = uvicorn.Server(uvicorn.Config(hub.app(), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the loopback Hub did not start"
            time.sleep(0.01)
        hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield hub
    finally:
        server.should_exit = True
        thread.join(timeout=10)
