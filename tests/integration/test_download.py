"""Downloads against a server on loopback that behaves as badly as it is told to."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bll.data import cifar, mnist
from bll.data.download import Limits, fetch
from bll.data.published import Download
from bll.errors import DataError

CONTENT = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMITS = Limits(rounds=3, timeout_s=5.0)


@dataclass
class Mirror:
    """Answers each path as its behaviours say, in turn; the last one stays."""

    url: str
    behaviours: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request."""
    release: threading.Event = field(default_factory=threading.Event)
    """Ends the answers that hang."""

    def serve(self, path: str, *behaviours: str) -> str:
        self.behaviours[path] = list(behaviours)
        return self.url + path


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, state)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Mirror(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.release.set()
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def answer(request: BaseHTTPRequestHandler, mirror: Mirror) -> None:
    asked = request.headers.get("Range")
    mirror.ranges.append(asked)
    turns = mirror.behaviours[request.path]
    behaviour = turns.pop(0) if len(turns) > 1 else turns[0]
    content = mirror.files.get(request.path, CONTENT)
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and "ignore range" not in behaviour else 0
    if behaviour == "missing" or start >= len(content):
        request.send_response(404 if behaviour == "missing" else 416)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    body = content[start:]
    request.send_response(206 if start else 200)
    if start:
        shown = start + 1 if behaviour == "wrong range" else start
        request.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
    if "too long" in behaviour:
        body += b"more"
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if "wrong bytes" in behaviour:
        body = bytes(len(body))
    if "truncate" in behaviour:
        body = body[: len(body) // 2]
    request.wfile.write(body[:-1] if "hang" in behaviour else body)
    request.wfile.flush()
    if "hang" in behaviour:
        mirror.release.wait(30)


def get(target: Path, *urls: str, limits: Limits = LIMITS, pauses: list[float] | None = None) -> None:
    waited = [] if pauses is None else pauses
    fetch(urls, target, sha256=SHA256, size_bytes=len(CONTENT), limits=limits, pause=waited.append)


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_good_mirror_gives_the_file_and_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.gz"
    get(target, mirror.serve("/file", "good"))
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == ["file.gz"]


def test_a_truncated_answer_is_gone_on_from(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    get(target, mirror.serve("/file", "truncate", "good"))
    assert target.read_bytes() == CONTENT
    assert mirror.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_later_call_goes_on_from_the_part_of_an_earlier_one(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    with pytest.raises(DataError, match="but ended after"):
        get(target, mirror.serve("/file", "truncate"), limits=replace(LIMITS, rounds=1))
    assert leftovers(target) == ["file.gz.part"]
    get(target, mirror.serve("/file", "good"))
    assert target.read_bytes() == CONTENT
    assert mirror.ranges[-1] == f"bytes={len(CONTENT) // 2}-"
    assert leftovers(target) == ["file.gz"]


def test_a_mirror_that_ignores_the_range_starts_anew(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    get(target, mirror.serve("/file", "truncate", "ignore range"))
    assert target.read_bytes() == CONTENT


def test_an_answer_for_another_range_is_not_appended(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    get(target, mirror.serve("/file", "truncate", "wrong range", "good"))
    assert target.read_bytes() == CONTENT
    assert mirror.ranges == [None, f"bytes={len(CONTENT) // 2}-", None]


def test_wrong_bytes_are_thrown_away_and_the_next_mirror_is_asked(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    get(target, mirror.serve("/bad", "wrong bytes"), mirror.serve("/file", "good"))
    assert target.read_bytes() == CONTENT
    assert mirror.ranges == [None, None]


def test_a_part_with_wrong_bytes_is_found_when_it_is_whole(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    target.with_name("file.gz.part").write_bytes(b"wrong")
    get(target, mirror.serve("/file", "good"))
    assert target.read_bytes() == CONTENT
    assert mirror.ranges == ["bytes=5-", None]


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_a_part_as_long_as_the_file_or_longer_does_no_harm(mirror: Mirror, tmp_path: Path, extra: bytes) -> None:
    target = tmp_path / "file.gz"
    target.with_name("file.gz.part").write_bytes(CONTENT + extra)
    get(target, mirror.serve("/file", "good"))
    assert target.read_bytes() == CONTENT


def test_only_wrong_bytes_leave_no_file_and_name_the_digests(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    with pytest.raises(DataError, match=f"{target}: cannot be downloaded: .*SHA-256 must be {SHA256}, got"):
        get(target, mirror.serve("/bad", "wrong bytes"))
    assert not target.exists()
    assert len(mirror.ranges) == LIMITS.rounds


def test_an_answer_without_end_is_cut_off_at_the_known_size(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    with pytest.raises(DataError, match=f"must be {len(CONTENT)} bytes, but goes on"):
        get(target, mirror.serve("/file", "too long"))
    assert target.with_name("file.gz.part").stat().st_size == 0


def test_rounds_are_bounded_and_pauses_double(mirror: Mirror, tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(DataError, match="HTTP status 404"):
        get(tmp_path / "file.gz", mirror.serve("/a", "missing"), mirror.serve("/b", "missing"), pauses=pauses)
    assert len(mirror.ranges) == 2 * LIMITS.rounds
    assert pauses == [1.0, 2.0]


def test_silence_ends_with_the_timeout(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="timed out"):
        get(tmp_path / "file.gz", mirror.serve("/file", "hang"), limits=Limits(rounds=1, timeout_s=0.2))


def test_an_answer_past_its_deadline_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must answer within 0 s"):
        get(tmp_path / "file.gz", mirror.serve("/file", "good"), limits=Limits(rounds=1, deadline_s=0.0))


def test_a_closed_port_is_a_data_error(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Connection refused"):
        get(tmp_path / "file.gz", "http://127.0.0.1:1/file", limits=Limits(rounds=1))


def test_a_directory_that_cannot_be_made_is_a_data_error(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be downloaded to"):
        get(tmp_path / "file" / "file.gz", mirror.serve("/file", "good"))


def test_two_at_once_download_once(mirror: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    url = mirror.serve("/file", "good")
    errors: list[DataError] = []

    def download() -> None:
        try:
            get(target, url)
        except DataError as error:
            errors.append(error)

    threads = [threading.Thread(target=download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not errors
    assert target.read_bytes() == CONTENT
    assert len(mirror.ranges) == 1
    assert leftovers(target) == ["file.gz"]


def test_a_set_that_is_nowhere_is_downloaded_into_the_root(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BLL_DATASETS_DIR", raising=False)
    monkeypatch.delenv("BLL_OFFLINE", raising=False)
    files = []
    for file, shape in zip(mnist.MNIST.files, [(12, 3, 3), (12,), (5, 3, 3), (5,)], strict=True):
        unpacked = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(int(np.prod(shape)))
        packed = gzip.compress(unpacked, mtime=0)
        digests = (hashlib.sha256(unpacked).hexdigest(), hashlib.sha256(packed).hexdigest())
        files.append(mnist.File(file.name, shape, *digests, len(packed)))
        mirror.files[f"/set/{file.name}.gz"] = packed
        mirror.serve(f"/set/{file.name}.gz", "good")
    one, two, three, four = files
    source = replace(mnist.MNIST, name="tiny", files=(one, two, three, four), mirrors=(f"{mirror.url}/set/",))

    described = source.summary(tmp_path / "root")
    assert mirror.ranges == []
    content = source.read(tmp_path / "root")
    assert content.train.inputs.shape == (12, 1, 3, 3)
    assert content.digest == described.digest
    assert leftovers(tmp_path / "root" / "tiny" / "x") == sorted(f"{file.name}.gz" for file in source.files)
    source.read(tmp_path / "root")
    assert len(mirror.ranges) == 4


def test_an_archive_that_is_nowhere_is_downloaded_gone_on_from_and_read_in_place(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BLL_DATASETS_DIR", raising=False)
    monkeypatch.delenv("BLL_OFFLINE", raising=False)
    files: list[cifar.File] = []
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for file in cifar.CIFAR_10.files:
            records = np.random.default_rng(len(files)).integers(10, size=2 * cifar.RECORD_BYTES, dtype=np.uint8)
            files.append(cifar.File(file.name, 2, hashlib.md5(records.tobytes()).hexdigest()))
            info = tarfile.TarInfo(f"{cifar.FOLDER}/{file.name}")
            info.size = records.size
            archive.addfile(info, io.BytesIO(records.tobytes()))
    packed = stream.getvalue()
    known = Download("tiny.tar.gz", hashlib.sha256(packed).hexdigest(), len(packed))
    mirror.files["/set/tiny.tar.gz"] = packed
    mirror.serve("/set/tiny.tar.gz", "good")
    source = replace(cifar.CIFAR_10, name="tiny", archive=known, files=tuple(files), mirrors=(f"{mirror.url}/set/",))
    part = tmp_path / "root" / "tiny" / "tiny.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(packed[:1000])

    described = source.summary(tmp_path / "root")
    assert mirror.ranges == []
    content = source.read(tmp_path / "root")
    assert mirror.ranges == ["bytes=1000-"]
    assert content.summary() == described
    assert content.train.inputs.shape == (10, 3, 32, 32)
    assert leftovers(part) == ["tiny.tar.gz"]
