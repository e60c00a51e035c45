"""Downloads the archive of a data set: resumable, verified by SHA-256, and put in place in one atomic step."""

from __future__ import annotations

import http.client
import os
import shutil
import struct
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from filelock import FileLock

from speech_exp.data.recordings import fingerprint, index_recordings, read_contents
from speech_exp.progress import progress

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60
LARGEST_RATIO = 100  # unpacked size to archive size, at most: speech hardly compresses, text to about a tenth
_LONGEST_NAME = 255  # bytes


class Archive:
    """A zip archive on the web that contains a folder of recordings.

    The pinned SHA-256 is over the names and contents of the recordings (`data.recordings.fingerprint`), not over the zip
    file: GitHub regenerates its archives and does not guarantee that their bytes stay the same.
    """

    def __init__(self, url: str, sha256: str) -> None:
        self.url, self.sha256 = url, sha256

    def fetch(self, root: Path, folder: str) -> Path:
        """Download the archive's recordings to `root/folder`, which appears only when all are verified; return `root`."""
        try:
            return self._fetch(root, folder)
        except OSError as error:
            raise ValueError(
                f"{root} cannot be written ({error.strerror}): set dataset.root to a folder that can"
            ) from None

    def _fetch(self, root: Path, folder: str) -> Path:
        target = root / folder
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(str(root) + ".lock"):
            if target.is_dir():
                self._verify(target, f"{target} exists, but")
                return root
            archive = root / "archive.zip.part"
            self._download(archive)
            try:
                with tempfile.TemporaryDirectory(dir=root) as aside:
                    unpacked = Path(aside) / folder
                    _unpack(archive, folder, unpacked)
                    self._verify(unpacked, f"the archive of {self.url}")
                    os.replace(unpacked, target)
            except ValueError:
                archive.unlink()  # otherwise the next run would take it for a complete download
                raise
            archive.unlink()
        return root

    def _verify(self, folder: Path, what: str) -> None:
        recordings, _ = index_recordings(folder)
        found = fingerprint(recordings, read_contents(recordings))
        if found != self.sha256:
            raise ValueError(
                f"{what} does not contain the expected recordings ({len(recordings)} recordings, SHA-256 {found}, "
                f"expected {self.sha256}): remove the folder and run action=prepare again, or change dataset.download.url"
            )

    def _download(self, part: Path) -> None:
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                if response.status != 206:  # the server sends the whole file instead of the missing part
                    done = 0
                length = response.headers.get("Content-Length")
                total = (
                    done + int(length) if length else 0
                )  # 0: unknown, as when GitHub generates the archive while sending it
                shown = progress("download (bytes)", total, for_all=True)
                with open(part, "ab" if done else "wb", opener=_no_link) as file, shown as bar:
                    bar.advance(done)
                    while block := response.read(_BLOCK_BYTES):
                        file.write(block)
                        bar.advance(len(block))
            if total and part.stat().st_size != total:
                raise ConnectionError(f"{part.stat().st_size} of {total} bytes were received")
        except urllib.error.HTTPError as error:
            if error.code != 416:  # 416: the part file was complete already
                raise self._unreachable(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.url} could not be downloaded ({error}): run action=prepare again to resume the download, "
            f"or put the recordings in place by hand and set dataset.root"
        )


def _no_link(path: str, flags: int) -> int:
    """Open a file without following a symbolic link, which someone else could have placed under this predictable name."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpack the files in the archive's `*/folder/` into `target`, by their base names so none can land outside it."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if _is_file_of(member, folder)]
            size = sum(member.file_size for member in members)
            if size > LARGEST_RATIO * archive.stat().st_size:
                raise ValueError(
                    f"{archive} would unpack to {size:,} bytes, more than {LARGEST_RATIO} times its size, and has been "
                    f"removed: change dataset.download.url"
                )
            for member in members:
                name = Path(PurePosixPath(member.filename).name).name
                with content.open(member) as source, (target / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError):  # RuntimeError: e.g. encrypted
        raise ValueError(
            f"{archive} was not a valid zip archive and has been removed: run action=prepare again"
        ) from None


def _is_file_of(member: zipfile.ZipInfo, folder: str) -> bool:
    path = PurePosixPath(member.filename)
    if member.is_dir() or path.parent.name != folder or path.name in ("", ".", ".."):
        return False
    if (
        member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        or len(os.fsencode(path.name)) > _LONGEST_NAME
    ):
        raise zipfile.BadZipFile
    return True
