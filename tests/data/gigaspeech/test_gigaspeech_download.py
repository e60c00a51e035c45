"""Downloads of a release from a local server: only complete, verified files are put in place, once."""

from __future__ import annotations

import gzip
import hashlib
import io
import ssl
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import pbkdf2_hmac
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from Crypto.Cipher import AES
from speechcolab.datasets import gigaspeech as package

from speech_exp.data.gigaspeech.data_set import GigaSpeech
from speech_exp.data.gigaspeech.download import fetch

PASSWORD = "open/sesame"
ARCHIVES = {name: f"audio/{name}.tgz.aes" for name in ("audiobook/A0001", "podcast/P0001", "youtube/Y0001")}


@dataclass
class Server:
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def put(self, name: str, content: bytes) -> None:
        """Add an archive, and its MD5 to the list of files."""
        self.files[name] = content
        listed = yaml.safe_load(self.files.get("files.yaml", b"{}"))
        category = "metadata" if name.startswith("GigaSpeech") else name.split("/")[1]
        listed.setdefault(category, {})[name] = hashlib.md5(content).hexdigest()
        self.files["files.yaml"] = yaml.safe_dump(listed).encode()

    def archives_asked(self) -> list[str]:
        return [name for name in self.asked if name.endswith(".aes")]


def encrypted(content: bytes, password: str = PASSWORD) -> bytes:
    """Encrypt as `openssl enc -aes-256-cbc -pbkdf2 -iter 10000` does."""
    salt = b"12345678"
    key = pbkdf2_hmac("sha256", password.encode(), salt, 10000, 48)
    padding = 16 - len(content) % 16
    cipher = AES.new(key[:32], AES.MODE_CBC, key[32:])
    return b"Salted__" + salt + cipher.encrypt(content + bytes([padding]) * padding)


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def server(small_release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve the small release like SpeechColab, without the package's pause for reading the terms."""
    monkeypatch.setattr(package.time, "sleep", lambda _: None)
    state = Server({"TERMS_OF_ACCESS": b"the terms\n"})
    state.put("GigaSpeech.json.gz.aes", encrypted(gzip.compress((small_release / "GigaSpeech.json").read_bytes())))
    for folder, name in ARCHIVES.items():
        members = {path.name: path.read_bytes() for path in sorted((small_release / "audio" / folder).iterdir())}
        state.put(name, encrypted(archive(members)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/release/")
            state.asked.append(name)
            if name not in state.files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.files[name])))
            self.end_headers()
            self.wfile.write(state.files[name])

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{listening.server_port}/release"
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield state
    listening.shutdown()
    thread.join()
    listening.server_close()


def contents(root: Path) -> dict[str, bytes]:
    """Return the installed files by path."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        name: path.read_bytes() for path in files if not (name := path.relative_to(root).as_posix()).startswith(".")
    }


def test_the_complete_release_is_put_in_place_once(server: Server, small_release: Path, tmp_path: Path) -> None:
    root = tmp_path / "release"
    fetch(root, PASSWORD, server.url, "xs")
    assert contents(root) == contents(small_release)
    assert sorted(server.archives_asked()) == sorted(["GigaSpeech.json.gz.aes", *ARCHIVES.values()])
    left = sorted(path.name for path in (root / ".download").rglob("*") if path.is_file())
    assert left == ["TERMS_OF_ACCESS", "files.yaml", "finished.json"]
    server.asked.clear()
    fetch(root, PASSWORD, server.url, "xs")
    assert server.archives_asked() == []
    assert contents(root) == contents(small_release)


def test_what_the_package_changes_is_set_back(server: Server, tmp_path: Path) -> None:
    before = (ssl._create_default_https_context, tarfile.TarFile.extraction_filter, dict(package.url_of_host))
    fetch(tmp_path, PASSWORD, server.url, "xs")
    assert (ssl._create_default_https_context, tarfile.TarFile.extraction_filter, dict(package.url_of_host)) == before


def test_prepare_downloads_what_is_missing_and_only_then(
    server: Server, small_release: Path, tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]
) -> None:
    root = tmp_path / "release"
    dataset = gigaspeech(root=str(root), prepared=str(tmp_path / "prepared"), password=PASSWORD, host=server.url)
    assert dataset.fetch() == root
    assert dataset.corpus.fingerprint == gigaspeech(root=str(small_release)).corpus.fingerprint
    server.asked.clear()
    dataset.fetch()
    assert server.asked == []
    (root / "audio/podcast/P0001/POD0000000002.opus").unlink()
    with pytest.raises(
        ValueError, match=r"1 audio files of the subsets .* are missing below .*POD0000000002.opus.*GIGASPEECH_PASSWORD"
    ):
        _ = gigaspeech(root=str(root), prepared=str(tmp_path / "other")).corpus


@pytest.mark.parametrize("known", [False, True])
def test_a_wrong_password_puts_nothing_in_place(
    server: Server, small_release: Path, tmp_path: Path, known: bool
) -> None:
    if known:  # the metadata is there; only archives are decrypted
        server.put(
            "GigaSpeech.json.gz.aes", encrypted(gzip.compress((small_release / "GigaSpeech.json").read_bytes()), "no")
        )
    with pytest.raises(
        ValueError, match=r"\.aes could not be decrypted: dataset.password is not the password of this release"
    ):
        fetch(tmp_path, "no", server.url, "xs")
    assert set(contents(tmp_path)) == ({"GigaSpeech.json"} if known else set())
    asked = len(server.archives_asked())
    if not known:
        fetch(tmp_path, PASSWORD, server.url, "xs")  # a downloaded archive with the right MD5 is not fetched again
        assert contents(tmp_path) == contents(small_release)
        assert len(server.archives_asked()) == asked + 3


def test_a_missing_file_is_named_and_the_next_run_resumes(server: Server, small_release: Path, tmp_path: Path) -> None:
    missing = server.files.pop(ARCHIVES["podcast/P0001"])
    with pytest.raises(
        ValueError,
        match=r"could not be downloaded from dataset.host=http.*\(HTTP Error 404: .* of http.*P0001\.tgz\.aes\): run action=prepare again",
    ):
        fetch(tmp_path, PASSWORD, server.url, "xs")
    server.files[ARCHIVES["podcast/P0001"]] = missing
    server.asked.clear()
    fetch(tmp_path, PASSWORD, server.url, "xs")
    assert contents(tmp_path) == contents(small_release)
    assert ARCHIVES["audiobook/A0001"] not in server.asked


def test_a_corrupt_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[ARCHIVES["audiobook/A0001"]] = server.files[ARCHIVES["audiobook/A0001"]][:-16] + bytes(16)
    with pytest.raises(ValueError, match=r"could not be downloaded from .*A0001\.tgz\.aes with md5"):
        fetch(tmp_path, PASSWORD, server.url, "xs")
    assert set(contents(tmp_path)) == {"GigaSpeech.json"}
    assert server.asked.count(ARCHIVES["audiobook/A0001"]) == 3


@pytest.mark.parametrize("member", ["../outside.opus", "../../../../outside.opus"])
def test_an_archive_never_writes_outside_its_folder(server: Server, tmp_path: Path, member: str) -> None:
    server.put(ARCHIVES["audiobook/A0001"], encrypted(archive({"AUD0000000001.opus": b"x", member: b"y"})))
    root = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match=r"A0001\.tgz\.aes would write outside its folder .*: nothing of it was kept"):
        fetch(root, PASSWORD, server.url, "xs")
    assert set(contents(root)) == {"GigaSpeech.json"}
    assert not list(tmp_path.rglob("outside.opus"))


def test_an_archive_that_would_unpack_to_too_much_leaves_nothing(server: Server, tmp_path: Path) -> None:
    name = ARCHIVES["audiobook/A0001"]
    server.put(name, encrypted(archive({"AUD0000000001.opus": bytes(10**7)})))
    with pytest.raises(
        ValueError, match=r"A0001\.tgz\.aes is too large .more than 100 times .*: nothing of it was kept"
    ):
        fetch(tmp_path, PASSWORD, server.url, "xs")
    assert set(contents(tmp_path)) == {"GigaSpeech.json"}
    assert not [path for path in tmp_path.rglob("*A0001*") if path.is_file()]


def test_a_packed_file_that_would_unpack_to_too_much_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.put("GigaSpeech.json.gz.aes", encrypted(gzip.compress(bytes(10**7))))
    with pytest.raises(ValueError, match=r"GigaSpeech\.json\.gz\.aes is too large"):
        fetch(tmp_path, PASSWORD, server.url, "xs")
    assert not [path for path in tmp_path.rglob("GigaSpeech*") if path.is_file()]


@pytest.mark.parametrize("name", ["GigaSpeech/../../outside.gz.aes", "/tmp/GigaSpeech.gz.aes"])
def test_a_listed_name_never_leaves_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    server.files["files.yaml"] = yaml.safe_dump({"metadata": {name: "0" * 32}}).encode()
    with pytest.raises(ValueError, match=rf"the release lists {name}, which lies outside its folder"):
        fetch(tmp_path, PASSWORD, server.url, "xs")
    assert server.archives_asked() == []


def test_a_refused_connection_is_reported_in_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"could not be downloaded from dataset.host=http://127.0.0.1:9/x \(.*refused.*\): run"
    ):
        fetch(tmp_path, PASSWORD, "http://127.0.0.1:9/x", "xs")


def test_the_password_is_not_shown(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        fetch(tmp_path, PASSWORD, f"{server.url}/{PASSWORD}", "xs")
    assert PASSWORD not in str(caught.value).partition("(")[2]


def test_a_list_without_a_category_is_reported_in_one_sentence(server: Server, tmp_path: Path) -> None:
    server.files["files.yaml"] = b"{}"
    with pytest.raises(ValueError, match=r"could not be downloaded .*No entry for metadata"):
        fetch(tmp_path, PASSWORD, server.url, "xs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "mars"}, "dataset.host=mars is unknown: expected tsinghua, speechocean, magicdata or a URL"),
        ({"host": "oss"}, "dataset.host=oss is unknown"),
        ({"password": ""}, "dataset.password is empty"),
    ],
)
def test_values_without_meaning_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(**{"root": tmp_path, "password": "x", "host": "tsinghua", "subset": "xs", **change})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written .*: set dataset.root to a folder that can"):
        fetch(tmp_path / "file" / "release", PASSWORD, "tsinghua", "xs")
