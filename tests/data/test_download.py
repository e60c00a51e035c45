"""Downloads of an archive from a local server: complete, truncated, resumed, refused, and never partly in place."""

from __future__ import annotations

import io
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speech_exp.data import download
from speech_exp.data import root as data_root
from speech_exp.data.digits import Digits
from speech_exp.data.download import Archive
from speech_exp.data.recordings import fingerprint, index_recordings, read_contents

TOP = "free-spoken-digit-dataset-26eb9aa"  # GitHub puts the whole archive below one folder


@dataclass
class Server:
    """The server's settings for its next answer, and a record of its requests."""

    content: bytes = b""
    url: str = ""
    knows_ranges: bool = True
    chunked: bool = False  # no Content-Length, as GitHub sends its archives
    cut_after: int | None = None  # bytes after which the connection breaks
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)  # Range header of each request
    sent: list[int] = field(default_factory=list)  # bytes of each answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        state = self.state
        asked = self.headers.get("Range")
        state.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.knows_ranges else 0
        if state.status != 200 or (start and start >= len(state.content)):
            self.send_response(state.status if state.status != 200 else 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = state.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
        self.send_header(*(("Transfer-Encoding", "chunked") if state.chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        part = body if state.cut_after is None else body[: state.cut_after]
        if state.chunked:
            for position in range(0, len(part), 1000):
                chunk = part[position : position + 1000]
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            if len(part) == len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(part)
        state.sent.append(len(part))
        if len(part) < len(body):
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo keeps the name unchanged, even a dangerous one
    return file.getvalue()


@pytest.fixture
def members(tiny_root: Path) -> dict[str, bytes]:
    recordings = {
        f"{TOP}/recordings/{path.name}": path.read_bytes() for path in sorted((tiny_root / "recordings").iterdir())
    }
    return {f"{TOP}/README.md": b"about", f"{TOP}/recordings/": b"", **recordings}


@pytest.fixture
def server(members: dict[str, bytes]) -> Iterator[Server]:
    state = Server(zipped(members))
    web = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{web.server_address[1]}/archive.zip"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def archive(server: Server, tiny_root: Path) -> Archive:
    recordings, _ = index_recordings(tiny_root / "recordings")
    return Archive(server.url, fingerprint(recordings, read_contents(recordings)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "place" / "data"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_complete(root: Path, tiny_root: Path) -> None:
    """Check that the root contains all recordings, byte for byte, and nothing else."""
    assert [path.name for path in root.iterdir()] == ["recordings"]
    expected = {path.name: path.read_bytes() for path in (tiny_root / "recordings").iterdir()}
    assert {path.name: path.read_bytes() for path in (root / "recordings").iterdir()} == expected


@pytest.mark.parametrize("chunked", [False, True])
def test_a_whole_download_leaves_the_recordings_and_nothing_else(
    archive: Archive, server: Server, root: Path, tiny_root: Path, chunked: bool
) -> None:
    server.chunked = chunked
    assert archive.fetch(root, "recordings") == root
    assert_complete(root, tiny_root)
    assert server.ranges == [None]


def test_a_second_run_sends_no_request(archive: Archive, server: Server, root: Path, tiny_root: Path) -> None:
    archive.fetch(root, "recordings")
    archive.fetch(root, "recordings")
    assert len(server.ranges) == 1
    assert_complete(root, tiny_root)


@pytest.mark.parametrize("chunked_rest", [False, True])
def test_an_interrupted_download_resumes_where_it_stopped(
    archive: Archive, server: Server, root: Path, tiny_root: Path, chunked_rest: bool
) -> None:
    whole, server.cut_after = len(server.content), 5000
    with pytest.raises(ValueError, match=f"5000 of {whole} bytes were received.*: run action=prepare again to resume"):
        archive.fetch(root, "recordings")
    assert not (root / "recordings").exists()
    server.cut_after, server.chunked = None, chunked_rest
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)
    assert server.ranges == [None, "bytes=5000-"]
    assert server.sent == [5000, whole - 5000]


def test_a_chunked_download_that_breaks_off_is_reported_in_one_sentence(
    archive: Archive, server: Server, root: Path, tiny_root: Path
) -> None:
    server.chunked, server.cut_after = True, 5000
    with pytest.raises(ValueError, match=r"archive\.zip could not be downloaded \(.*\): run action=prepare again"):
        archive.fetch(root, "recordings")
    assert not (root / "recordings").exists()
    server.cut_after = None
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)


def test_a_server_without_ranges_sends_all_of_it_again(
    archive: Archive, server: Server, root: Path, tiny_root: Path
) -> None:
    server.knows_ranges = False
    for server.cut_after in (5000, 4000):
        with pytest.raises(ValueError, match=f"{server.cut_after} of {len(server.content)} bytes were received"):
            archive.fetch(root, "recordings")
        assert (root / "archive.zip.part").read_bytes() == server.content[: server.cut_after]
    server.cut_after = None
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)
    assert server.sent == [5000, 4000, len(server.content)]


def test_a_complete_part_file_needs_no_further_byte(
    archive: Archive, server: Server, root: Path, tiny_root: Path
) -> None:
    # killed between the download and the unpacking
    root.mkdir(parents=True)
    (root / "archive.zip.part").write_bytes(server.content)
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)
    assert server.sent == []


@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_other_content_is_refused_and_not_kept(
    archive: Archive, server: Server, root: Path, tiny_root: Path, members: dict[str, bytes], change: str
) -> None:
    good, name = server.content, f"{TOP}/recordings/0_anna_0.wav"
    other = dict(members)
    if change == "changed":
        other[name] = other[name][:-1] + bytes([other[name][-1] ^ 1])
    elif change == "missing":
        del other[name]
    else:
        other[f"{TOP}/recordings/9_anna_0.wav"] = b"x"
    server.content = zipped(other)
    with pytest.raises(ValueError, match=r"the archive of http.* does not contain the expected recordings .*SHA-256"):
        archive.fetch(root, "recordings")
    assert files_below(root) == []  # the wrong archive is gone too: the next run would take it for the right one
    server.content = good
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)


def test_a_damaged_folder_that_is_already_there_is_refused_and_left_as_it_is(
    archive: Archive, server: Server, root: Path
) -> None:
    archive.fetch(root, "recordings")
    (root / "recordings" / "0_anna_0.wav").unlink()
    before = files_below(root)
    with pytest.raises(
        ValueError, match=r"recordings exists, but does not contain .*\(53 recordings.*remove the folder"
    ):
        archive.fetch(root, "recordings")
    assert files_below(root) == before
    assert len(server.ranges) == 1


@pytest.mark.parametrize("damage", ["no zip", "cut", "bytes"])
def test_an_unreadable_zip_is_reported_in_one_sentence_and_the_next_run_starts_over(
    archive: Archive, server: Server, root: Path, tiny_root: Path, members: dict[str, bytes], damage: str
) -> None:
    good = server.content
    if damage == "no zip":
        server.content = b"<html>Please log in</html>" * 100
    elif damage == "cut":
        server.content = good[:-1000]
    else:
        deflated = packed(members)
        start = deflated.index(b"0_anna_0.wav") + len("0_anna_0.wav")
        server.content = deflated[:start] + b"\xff" * 200 + deflated[start + 200 :]
    with pytest.raises(ValueError, match=r"archive\.zip.* zip archive .*run action=prepare again"):
        archive.fetch(root, "recordings")
    assert files_below(root) == []
    server.content = good
    archive.fetch(root, "recordings")
    assert_complete(root, tiny_root)


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def encrypted(content: bytes) -> bytes:
    """Mark the first file as encrypted in the archive's index."""
    at = content.index(b"PK\x01\x02") + 8
    return content[:at] + bytes([content[at] | 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            packed({f"{TOP}/recordings/0_a_0.wav": bytes(10**7)}),
            "would unpack to 10,000,000 bytes, more than 100 times",
        ),
        (packed({f"{TOP}/recordings/0_a_0.wav": b"x"}, zipfile.ZIP_LZMA), "not a valid zip archive"),
        (packed({f"{TOP}/recordings/{'x' * 300}": b"x"}), "not a valid zip archive"),
        (encrypted(packed({f"{TOP}/recordings/0_a_0.wav": b"x"})), "not a valid zip archive"),
    ],
    ids=["bomb", "lzma", "long name", "encrypted"],
)
def test_an_archive_that_must_not_be_unpacked_leaves_nothing(
    archive: Archive, server: Server, root: Path, content: bytes, message: str
) -> None:
    server.content = content
    with pytest.raises(ValueError, match=message):
        archive.fetch(root, "recordings")
    assert list(root.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system has no such links")
def test_a_download_does_not_follow_an_existing_link(archive: Archive, root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    root.mkdir(parents=True)
    (root / "archive.zip.part").symlink_to(precious)
    with pytest.raises(ValueError, match=r"archive\.zip could not be downloaded \(.*archive\.zip\.part"):
        archive.fetch(root, "recordings")
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name",
    [
        "../evil_recordings/recordings/0_evil_0.wav",
        "../../recordings/0_evil_0.wav",
        "/tmp/speech_exp_evil/recordings/0_evil_0.wav",
        "top/recordings/../../../../0_evil_0.wav",
        "top/recordings/..",
        "top/recordings/..\\..\\0_evil_0.wav",
        "..\\..\\recordings\\0_evil_0.wav",
        "C:\\recordings\\0_evil_0.wav",
        "top/recordings/C:0_evil_0.wav",
    ],
)
def test_no_member_of_a_hostile_archive_lands_outside(
    archive: Archive, server: Server, root: Path, tmp_path: Path, members: dict[str, bytes], name: str
) -> None:
    before = files_below(tmp_path)
    server.content = zipped({**members, name: b"evil"})
    try:
        archive.fetch(root, "recordings")
    except ValueError:
        expected = before  # unpacked among the recordings, which then no longer matched the fingerprint
    else:
        expected = sorted(before + [str(path.relative_to(tmp_path)) for path in (root / "recordings").iterdir()])
    # the lock file stays: others may be waiting for it
    assert [found for found in files_below(tmp_path) if not found.endswith(".lock")] == expected
    assert not Path("/tmp/speech_exp_evil").exists()


def test_a_server_that_cannot_be_reached_is_reported_in_one_sentence(root: Path) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/archive.zip"
        with pytest.raises(ValueError, match=r"could not be downloaded \(.*\): run .* set dataset\.root$") as caught:
            Archive(url, "0" * 64).fetch(root, "recordings")
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)
    assert files_below(root) == []


@pytest.mark.parametrize("status", [404, 403, 503])
def test_a_server_that_refuses_is_reported_in_one_sentence(
    archive: Archive, server: Server, root: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(ValueError, match=rf"archive\.zip could not be downloaded \(HTTP Error {status}.*\): run"):
        archive.fetch(root, "recordings")
    assert files_below(root) == []


def test_a_place_that_cannot_be_written_is_reported_in_one_sentence(
    archive: Archive, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"file.data cannot be written \(.+\): set dataset\.root to a folder that can"):
        archive.fetch(tmp_path / "file" / "data", "recordings")

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    # simulates a read-only folder: tests may run as root, which ignores permissions
    monkeypatch.setattr(download, "FileLock", refuse)
    with pytest.raises(ValueError, match=r"data cannot be written \(Permission denied\): set dataset\.root"):
        archive.fetch(root, "recordings")


def test_jobs_that_prepare_together_download_once(
    archive: Archive, server: Server, root: Path, tiny_root: Path
) -> None:
    threads = [threading.Thread(target=archive.fetch, args=(root, "recordings")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert_complete(root, tiny_root)


def test_prepare_downloads_to_the_first_place_where_the_data_set_is_looked_for(
    archive: Archive,
    tiny_digits: Callable[..., Digits],
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_root, "user_cache", lambda: tmp_path / "user_cache")
    monkeypatch.delenv("SPEECH_EXP_DATA", raising=False)
    digits = tiny_digits(root=None, download=archive)
    assert digits.fetch() == tmp_path / "user_cache" / "datasets" / "tiny"
    assert len(digits.recorded.recordings) == 54
    assert_complete(tmp_path / "user_cache" / "datasets" / "tiny", tiny_root)
