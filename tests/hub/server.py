"""A hub on the loopback: what huggingface_hub asks of the real one, and faults that the real one shows."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model")  # kept by their SHA-256, elsewhere


class Request(NamedTuple):
    """What was asked, as `HEAD /lab/text/resolve/main/config.json`; from which byte on; and whether a token came."""

    line: str
    begins: int
    has_token: bool


class Repository:
    """Commits by their names, each a folder's files."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.private = False
        self.licence: str | None = None


class Hub:
    """Repositories by their ids, what was asked of them, and what goes wrong.

    Attributes:
        uploaded: Contents of large files that were sent, by their SHA-256.
        requests: What was asked since it was last cleared.
        faults: By a file's name, or `revision` for what is asked of a repository, `push` and `upload` for what is sent,
            what goes wrong with one request after the other: a status with an error code (`403 GatedRepo`), `break` and
            `stall` in the middle of the content, `short` and `other` content, `close` for no answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[str]] = {}
        self.over = threading.Event()  # what stands still goes on
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def commit(self, repo: str, folder: Path, *refs: str) -> str:
        """Make what a folder holds the next commit of a repository, and of its branches or tags (`main`)."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(repo, files, *refs)

    def add(self, repo: str, files: dict[str, bytes], *refs: str) -> str:
        """Make these files the next commit of a repository."""
        repository = self.repositories.setdefault(repo, Repository())
        name = hashlib.sha1(f"{repo} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[name] = files
        repository.refs |= dict.fromkeys(refs or ("main",), name)
        return name

    def tag(self, repo: str, name: str) -> None:
        """Name the newest commit of a repository's main branch."""
        refs = self.repositories[repo].refs
        refs[name] = refs["main"]

    def asked(self, *methods: str) -> list[str]:
        """The names of the files that were asked for in these ways, or in any, in order."""
        lines = [request.line for request in self.requests if "/resolve/" in request.line]
        return [line.rpartition("/")[2] for line in lines if not methods or line.partition(" ")[0] in methods]

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        """The content of a large file, by its SHA-256."""
        content = self.body()
        if content is None or self.refuses("upload"):
            return
        name = hashlib.sha256(content).hexdigest()
        assert self.path == f"/upload/{name}"
        self.hub.uploaded[name] = content
        self.send_empty(200, {})

    def do_POST(self) -> None:
        """What a push asks: a repository, which files are large, where these go, and the commit."""
        content = self.body()
        if content is None:
            return
        path = unquote(self.path)
        repo = path.removeprefix("/").removesuffix(".git/info/lfs/objects/batch")
        if self.fault("push", "close"):
            self.close_connection = True
        elif self.refuses("push"):
            return
        elif "authorization" not in self.headers:
            self.send_empty(401, {})
        elif path == "/api/validate-yaml":
            self.send_json({"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            self.answer_create(json.loads(content))
        elif path.startswith("/api/models/") and "/preupload/" in path:
            files = [{**file, "uploadMode": self.mode(file["path"])} for file in json.loads(content)["files"]]
            self.send_json({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif repo != path.removeprefix("/"):
            self.answer_large(json.loads(content)["objects"])
        else:
            repo, _, revision = path.removeprefix("/api/models/").partition("/commit/")
            self.answer_commit(repo, revision, [json.loads(line) for line in content.splitlines()])

    def body(self) -> bytes | None:
        """What was sent; None where it is asked too late."""
        if self.hub.over.is_set():
            self.close_connection = True
            return None
        has_token = "authorization" in self.headers
        self.hub.requests.append(Request(f"{self.command} {unquote(self.path)}", 0, has_token))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def mode(self, name: str) -> str:
        return "lfs" if name.endswith(LARGE) else "regular"

    def answer_create(self, asked: dict[str, Any]) -> None:
        """A repository with nothing in it, as the hub makes one; 409 where there is one."""
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self.send_json({"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}, 409)
            return
        self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs"}, "main")
        self.hub.repositories[repo].private = asked.get("visibility") == "private"
        self.send_json({"url": f"{self.hub.url}/{repo}"})

    def answer_large(self, objects: list[dict[str, Any]]) -> None:
        """Where large files go that are not there yet."""
        for entry in objects:
            if entry["oid"] not in self.hub.uploaded:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{entry['oid']}"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def answer_commit(self, repo: str, revision: str, operations: list[dict[str, Any]]) -> None:
        """A commit on a branch whose last one is the parent that was named; 412 where it is not."""
        found = self.find(repo, revision)
        if found is None:
            return
        parent, files = found[0], dict(found[1])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "header" and value["parentCommit"] != parent:
                self.send_empty(412, {})
                return
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.add(repo, files, revision)
        self.send_json({"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    def do_GET(self) -> None:
        if self.hub.over.is_set():  # also to those who are connected yet
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        begins = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        has_token = "authorization" in self.headers
        self.hub.requests.append(Request(f"{self.command} {path}", begins, has_token))
        if path.startswith("/api/models/"):
            self.answer_about(path.removeprefix("/api/models/"))
        elif path.startswith("/content/"):
            _, _, repo, commit, name = path.replace("%2F", "/").split("/", 4)
            self.send_content(name, self.hub.repositories[repo.replace("--", "/")].commits[commit][name], begins)
        elif "/resolve/" not in path:
            self.send_empty(404, {})
        else:
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            self.answer_file(repo, *rest.split("/", 1), begins=begins)

    def answer_about(self, path: str) -> None:
        """`<repo>`, `<repo>/revision/<revision>` and `<repo>/tree/<revision>`."""
        repo, kind, revision = path, "revision", "main"
        for word in ("revision", "tree"):
            if f"/{word}/" in path:
                repo, _, revision = path.partition(f"/{word}/")
                kind = word
        if self.fault("revision", "stall"):
            self.stand_still()
            return
        if self.refuses("revision"):
            return
        found = self.find(repo, revision)
        if found is None:
            return
        commit, files = found
        listed = [describe(name, content) for name, content in sorted(files.items())]
        if kind == "tree":
            self.send_json(
                [{"type": "file", "path": entry["rfilename"], "oid": entry["blobId"], **entry} for entry in listed]
            )
        else:
            repository = self.hub.repositories[repo]
            about: dict[str, Any] = {"_id": "1", "id": repo, "modelId": repo, "private": repository.private}
            if repository.licence is not None:
                about["cardData"] = {"license": repository.licence}
            self.send_json({**about, "sha": commit, "siblings": listed})

    def answer_file(self, repo: str, revision: str, name: str, *, begins: int) -> None:
        """A small file itself; of a large one, where it is."""
        if self.refuses(name):
            return
        found = self.find(repo, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self.send_empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content, own = files[name], describe(name, files[name])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{own["blobId"]}"'}
        if not name.endswith(LARGE):
            self.send_content(name, content, begins, headers)
            return
        place = f"http://localhost:{self.server.server_port}/content/{repo.replace('/', '--')}/{commit}/{name}"  # type: ignore[attr-defined]
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{own["lfs"]["sha256"]}"'}
        self.send_empty(302, {**headers, **linked, "Location": place})

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files, or None where the answer is that there is none."""
        repository = self.hub.repositories.get(repo)
        if repository is None:
            self.send_empty(401, {"X-Error-Code": "RepoNotFound"})  # so that private names do not leak
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self.send_empty(404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def refuses(self, place: str) -> bool:
        """Send the status, or the page of somebody else, that is to come in the place of an answer."""
        status, _, code = self.fault(place, "page", digits=True).partition(" ")
        if status == "page":
            self.send_json("<html>Log in to this network</html>")
        elif status:
            self.send_empty(int(status), {"X-Error-Code": code} if code else {})
        return bool(status)

    def fault(self, place: str, *kinds: str, digits: bool = False) -> str:
        """What goes wrong with this request, if it is of these kinds; the next one is another's."""
        faults = self.hub.faults.get(place)
        if faults and (faults[0] in kinds or (digits and faults[0][:1].isdigit())):
            return faults.pop(0)
        return ""

    def send_content(self, name: str, content: bytes, begins: int, headers: dict[str, str] | None = None) -> None:
        fault = self.fault(name, "break", "stall", "other", "short") if self.command == "GET" else ""
        if fault == "other":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "short":
            content = content[:-7]
        self.send_response(206 if begins else 200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if begins:
            self.send_header("Content-Range", f"bytes {begins}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begins))
        self.end_headers()
        if self.command == "HEAD":
            return
        middle = (begins + len(content)) // 2
        if fault in ("break", "stall"):
            self.wfile.write(content[begins:middle])
            self.wfile.flush()
            if fault == "stall":
                self.stand_still()
            self.close_connection = True
        else:
            self.wfile.write(content[begins:])

    def stand_still(self) -> None:
        """Keep the connection, and say nothing more."""
        self.hub.over.wait(120)
        self.close_connection = True

    def send_json(self, value: Any, status: int = 200) -> None:
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: requests are kept."""


def describe(name: str, content: bytes) -> dict[str, Any]:
    """What the hub lists of a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry["lfs"]["oid"] = entry["lfs"]["sha256"]
    return entry
