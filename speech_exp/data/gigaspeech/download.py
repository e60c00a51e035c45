"""Downloads GigaSpeech with SpeechColab's package; only verified and complete data reach the release's folder.

The package downloads, verifies, decrypts and unpacks in a separate folder; the content of an archive is moved when it is
complete.
"""

from __future__ import annotations

import ftplib
import http.client
import json
import os
import shutil
import socket
import ssl
import tarfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from speech_exp.data.download import LARGEST_RATIO
from speech_exp.data.gigaspeech.release import METADATA
from speech_exp.files import write_json

ASIDE = ".download"  # below the root: unfinished archives, and the list of those in place
_FINISHED = "finished.json"  # MD5 of each archive whose content is in place
_TIMEOUT_S = 60.0
_AGAIN = "run action=prepare again to resume the download"

Process = Callable[[str, str], None]  # downloads and unpacks an archive, given its MD5 and its name


def fetch(root: Path, password: str, host: str, subset: str) -> None:
    """Download GigaSpeech.json and the audio of the training subset, DEV and TEST into `root`.

    Archives whose content is in place are skipped, and archives of an interrupted run with the right MD5 are reused.

    Args:
        host: name of a server that speechcolab knows, or the URL of a folder with TERMS_OF_ACCESS and files.yaml.
    """
    try:
        from speechcolab.datasets import gigaspeech as package
    except ImportError:
        raise ValueError(
            "the download of GigaSpeech needs speechcolab, which is not installed: pip install 'speech_exp[gigaspeech]'"
        ) from None
    hosts = [name for name, url in package.url_of_host.items() if not url.startswith("oss:")]
    if "://" not in host and host not in hosts:
        raise ValueError(f"dataset.host={host} is unknown: expected {', '.join(hosts)} or a URL, change dataset.host")
    if not password:
        raise ValueError(
            "dataset.password is empty: set GIGASPEECH_PASSWORD to the password that SpeechColab sends for the signed form"
        )
    try:
        (root / ASIDE).mkdir(parents=True, exist_ok=True)
        with FileLock(str(root) + ".lock"), _guarded(package, host):
            release = package.GigaSpeech(root / ASIDE)
            release.json_path = root / METADATA  # the package looks up the archives of a subset here
            process = release.download_and_process_object_from_release
            release.download_and_process_object_from_release = partial(_put_in_place, process, root)
            for each in (subset, "dev", "test"):
                release.download(password, f"{{{each.upper()}}}", host=host)
    except (*_UNREACHABLE, AssertionError) as error:
        reason = f"{error} of {error.url}" if isinstance(error, urllib.error.HTTPError) else str(error)
        for secret in (password, password.replace("/", "<SLASH>")):  # the package puts it into FTP URLs
            reason = reason.replace(secret, "***")
        raise ValueError(
            f"GigaSpeech could not be downloaded from dataset.host={host} ({reason}): {_AGAIN}, or change dataset.host"
        ) from None
    except OSError as error:
        raise ValueError(f"{root} cannot be written ({error}): set dataset.root to a folder that can") from None


# A refused connection raises URLError; the package raises ConnectionError for a file with a wrong MD5.
_UNREACHABLE = (
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    ftplib.Error,
    EOFError,  # from ftplib
)


def _put_in_place(process: Process, root: Path, md5: str, name: str) -> None:
    """Download and unpack an archive in `ASIDE` and move its content to `root`, unless that was done for this MD5."""
    finished_path = root / ASIDE / _FINISHED
    finished = json.loads(finished_path.read_text(encoding="utf-8")) if finished_path.exists() else {}
    place = PurePosixPath(name.removesuffix(".aes").removesuffix(".gz").removesuffix(".tgz"))
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"the release lists {name}, which lies outside its folder: change dataset.host")
    if finished.get(name) == md5 and (root / place).exists():
        return
    unpacked, archive = root / ASIDE / place, root / ASIDE / name
    _remove(unpacked)
    tarfile.TarFile.extraction_filter = staticmethod(_bounded_filter(archive))
    try:
        process(md5, name)
        for file in [unpacked] if unpacked.is_file() else sorted(unpacked.rglob("*")):
            if file.is_file():
                target = root / file.relative_to(root / ASIDE)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except tarfile.FilterError as error:
        _remove(archive)
        wrong = "is too large" if isinstance(error, _TooLargeError) else "would write outside its folder"
        raise ValueError(f"{name} {wrong} ({error}): nothing of it was kept, change dataset.host") from None
    except (tarfile.TarError, zlib.error):
        raise ValueError(
            f"{name} could not be decrypted: dataset.password is not the password of this release, set the one that "
            f"SpeechColab sends for the signed form"
        ) from None
    finally:
        _remove(unpacked)
        _remove(root / ASIDE / name.removesuffix(".aes"))  # decrypted, as large as the download itself
    write_json(finished_path, {**finished, name: md5})
    _remove(archive)


class _TooLargeError(tarfile.FilterError):
    pass


def _bounded_filter(archive: Path) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo]:
    """Return a tar filter that rejects paths outside the folder and content larger than LARGEST_RATIO times the archive."""
    unpacked = 0

    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        nonlocal unpacked
        unpacked += tarfile.BLOCKSIZE + max(member.size, 0)
        if unpacked > LARGEST_RATIO * archive.stat().st_size:
            raise _TooLargeError(f"more than {LARGEST_RATIO} times the size of the archive")
        return tarfile.data_filter(member, path)

    return check


class _BoundedDecompression:
    """A replacement for `zlib` in the package that limits the size of the output; the package itself sets no limit."""

    MAX_WBITS = zlib.MAX_WBITS

    def decompressobj(self, wbits: int) -> _BoundedDecompression:
        self._decompressor = zlib.decompressobj(wbits)
        return self

    def decompress(self, chunk: bytes) -> bytes:
        plain = self._decompressor.decompress(chunk, LARGEST_RATIO * len(chunk))
        if self._decompressor.unconsumed_tail:
            raise _TooLargeError(f"more than {LARGEST_RATIO} times the size of the archive")
        return plain


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _guarded(package: Any, host: str) -> Iterator[None]:
    """Limit the size of archives and the wait for servers, and afterwards undo all changes to global settings."""
    timeout_s, context = socket.getdefaulttimeout(), ssl._create_default_https_context
    original_filter = tarfile.TarFile.extraction_filter
    known = dict(package.url_of_host)
    socket.setdefaulttimeout(_TIMEOUT_S)
    package.zlib = _BoundedDecompression()
    if "://" in host:
        package.url_of_host[host] = host.rstrip("/")
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout_s)
        tarfile.TarFile.extraction_filter = original_filter
        package.zlib = zlib
        ssl._create_default_https_context = context  # the package switches verification off for the whole process
        package.url_of_host.clear()
        package.url_of_host.update(known)
