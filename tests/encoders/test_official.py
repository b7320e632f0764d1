"""Official files: fetched once and whole, checked, and loaded strictly without running their code."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.encoders.official import fetch_file, file_name, load_official, official_file, read_tensors
from fourm_ser.errors import InputError

BODY = bytes(range(256)) * 5_000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server:
    """A web server on this machine: `files` by path, `promised` lengths other than the true ones, and the `asked`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/some/weights%3D1.pth": BODY}
        self.promised: dict[str, int | None] = {}
        self.asked: list[str] = []
        self.moved: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path in server.moved:
                    self.send_response(302)
                    self.send_header("Location", server.moved[self.path])
                    self.end_headers()
                    return
                body = server.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                length = server.promised.get(self.path, len(body))
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None: ...

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def kept(cache: Path) -> list[str]:
    """What lies in the cache's folder of weights, locks aside."""
    return sorted(path.name for path in (cache / "weights").iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("digest", [DIGEST, DIGEST[:8], DIGEST[:8].upper(), None])
def test_a_file_is_downloaded_once(server: Server, tmp_path: Path, digest: str | None) -> None:
    url = f"{server.url}/some/weights%3D1.pth"
    path = fetch_file(url, digest=digest, cache=tmp_path)
    assert path == tmp_path / "weights" / "weights=1.pth"
    assert path.read_bytes() == BODY
    assert fetch_file(url, digest=digest, cache=tmp_path) == path
    assert server.asked == ["/some/weights%3D1.pth"]
    assert kept(tmp_path) == ["weights=1.pth"]


def test_a_server_may_move_a_file_and_promise_no_length(server: Server, tmp_path: Path) -> None:
    server.moved["/old/name.pth"] = "/some/weights%3D1.pth"
    server.promised["/some/weights%3D1.pth"] = None
    path = fetch_file(f"{server.url}/old/name.pth", digest=DIGEST, cache=tmp_path)
    assert path.name == "name.pth"
    assert path.read_bytes() == BODY


def test_another_file_than_promised_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"weights=1.pth from {server.url}.*{DIGEST}.*begins with 12345678"):
        fetch_file(f"{server.url}/some/weights%3D1.pth", digest="12345678", cache=tmp_path)
    assert kept(tmp_path) == []


def test_another_file_than_promised_in_the_cache_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights" / "weights=1.pth"
    path.parent.mkdir()
    path.write_bytes(b"put here by hand")
    found = hashlib.sha256(b"put here by hand").hexdigest()
    with pytest.raises(InputError, match=f"{path}.*{found}.*{DIGEST[:8]}.*Delete it"):
        fetch_file(f"{server.url}/some/weights%3D1.pth", digest=DIGEST[:8], cache=tmp_path)
    assert path.read_bytes() == b"put here by hand"
    assert server.asked == []


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_a_broken_transfer_leaves_nothing_and_can_be_repeated(
    server: Server, tmp_path: Path, digest: str | None
) -> None:
    url = f"{server.url}/some/weights%3D1.pth"
    server.promised["/some/weights%3D1.pth"] = 2 * len(BODY)
    with pytest.raises(
        InputError, match=rf"{url}.*{len(BODY)} bytes read, {len(BODY)} more expected.*weights=PATH.*weights=random"
    ):
        fetch_file(url, digest=digest, cache=tmp_path)
    assert kept(tmp_path) == []
    server.promised.clear()
    assert fetch_file(url, digest=digest, cache=tmp_path).read_bytes() == BODY


def test_what_cannot_be_downloaded_is_named_with_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth.*404.*encoder\.audio\.weights=PATH.*encoder\.weights=random"):
        fetch_file(f"{server.url}/nowhere.pth", digest=None, cache=tmp_path)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody else's, and nobody listens
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/a.pth"
        with pytest.raises(InputError, match=r"refused.*encoder\.audio\.pca=PATH, or use encoder\.audio\.pca=false"):
            fetch_file(url, digest=None, cache=tmp_path, key="encoder.audio.pca", instead="encoder.audio.pca=false")
    assert kept(tmp_path) == []


@pytest.mark.parametrize("url", ["no url at all/x.pth", "http://[::1/x.pth", "nothing://host/x.pth"])
def test_a_url_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"cannot be downloaded|no url"):
        fetch_file(url, digest=None, cache=tmp_path)


def test_names_come_from_the_url() -> None:
    assert file_name("https://zenodo.org/record/3987831/files/Cnn14_16k_mAP%3D0.438.pth?download=1") == (
        "Cnn14_16k_mAP=0.438.pth"
    )
    assert file_name("https://host/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd") == "passwd"
    for url in ("https://host", "https://host/", "https://host/a/.."):
        with pytest.raises(InputError, match="ends in no file name"):
            file_name(url)


def test_two_that_ask_at_once_download_once(server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/some/weights%3D1.pth"
    threads = [
        threading.Thread(target=fetch_file, args=(url,), kwargs={"digest": DIGEST, "cache": tmp_path}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert kept(tmp_path) == ["weights=1.pth"]


def test_a_file_or_its_folder_may_be_given(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/weights%3D1.pth"
    path = tmp_path / "weights=1.pth"
    path.write_bytes(BODY)
    assert official_file(str(path), url=url, digest="ffff", cache=tmp_path) == path
    assert official_file(str(tmp_path), url=url, digest="ffff", cache=tmp_path) == path
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "other.pth"):
        with pytest.raises(InputError, match=rf"encoder\.audio\.weights={source}: no such file.*weights=1\.pth"):
            official_file(str(source), url=url, digest=None, cache=tmp_path)


class Small(nn.Module):
    """Stands for an official network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.norm = nn.BatchNorm1d(3)


State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    """An official state dict: the module's own, and what is not used."""
    torch.manual_seed(0)
    return {**Small().state_dict(), "head.weight": torch.randn(5, 3), "filters": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_state_dict_is_loaded(tmp_path: Path, state: State, zipped: bool, inside: bool) -> None:
    path = tmp_path / "official.pth"
    content = {"iteration": 3, "sampler": {"queue": np.arange(3)}, "model": state} if inside else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    module = Small()
    load_official(module, path, inside="model", ignore=("head.", "filters"), constants={"filters": state["filters"]})
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])


Change = Callable[[State], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv.bias"), r"1 missing: conv\.bias\. Is it"),
        (lambda state: state.update(surplus=torch.zeros(1)), r"1 unexpected: surplus\. Is it"),
        (lambda state: state.update({"conv.weight": torch.zeros(4, 2, 3)}), r"conv\.weight \(4, 2, 3\) for \(3, 2, 3"),
        (lambda state: [state.pop(name) for name in list(state) if "norm" in name], r"5 missing: .*, \.\.\.\. Is it"),
        (
            lambda state: [state.update({f"layer.{name}": state.pop(name)}) for name in list(state)],
            r"7 missing: conv\.weight, .*; 9 unexpected: layer\.conv\.weight,.*another number of classes",
        ),
        (lambda state: state.update(filters=torch.zeros(2, 3)), r"filters \(2, 3\) is not the front end's.*rate"),
        (lambda state: state.update(filters=torch.zeros(4, 3)), r"filters \(4, 3\) is not .* \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, state: State, change: Change, message: str) -> None:
    path = tmp_path / "official.pth"
    constants = {"filters": state["filters"].clone()}
    change(state)
    torch.save(state, path)
    module = Small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InputError, match=rf"{path}: .*{message}"):
        load_official(module, path, ignore=("head.", "filters"), constants=constants)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("numpy_1", [True, False])
def test_arrays_of_numpy_are_tensors(tmp_path: Path, numpy_1: bool) -> None:
    path = tmp_path / "pca.pth"
    content = {"vectors": np.arange(6.0).reshape(2, 3), "means": np.zeros(3, dtype=np.float32)}
    other = {"seed": np.int64(3), "names": np.array(["a", "b"], dtype=object), "choice": np.array([True])}
    torch.save({"model": content, "other": other}, path, _use_new_zipfile_serialization=False)
    if numpy_1:
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    tensors = read_tensors(path, inside="model")
    assert tensors["vectors"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["means"].dtype == torch.float32


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_not_opened(tmp_path: Path, state: State, zipped: bool) -> None:
    path = tmp_path / "official.pth"
    torch.save({"model": state, "other": Trap(tmp_path / "sprung")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"{path}: .*pickled \S*open, which is not opened"):
        read_tensors(path, inside="model")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 no archive", b"\x80\x02}q\x00."])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "official.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: no file of tensors"):
        read_tensors(path)


def test_a_file_cut_off_is_named(tmp_path: Path, state: State) -> None:
    path = tmp_path / "official.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=f"{path}: no file of tensors"):
        read_tensors(path)


@pytest.mark.parametrize("content", [torch.zeros(2), {}, [1, 2], {"a": 1, "b": torch.zeros(1)}, {"model": 3}])
def test_other_tensors_than_by_name_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "official.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=f"{path}: holds .* tensors by name"):
        read_tensors(path, inside="model")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.pth"):
        with pytest.raises(InputError, match=f"{path}: no such file"):
            load_official(Small(), path)
