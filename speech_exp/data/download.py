"""Download of a data set's archive: resumable, verified by SHA-256, unpacked in one atomic step."""

from __future__ import annotations

import http.client
import os
import shutil
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


class Archive:
    """A zip archive on the web that holds a folder of recordings.

    The pinned SHA-256 is that of the recordings' names and contents (`data.recordings.fingerprint`), not of the zip file:
    GitHub makes its archives anew and does not promise their bytes.
    """

    def __init__(self, url: str, sha256: str) -> None:
        self.url, self.sha256 = url, sha256

    def fetch(self, root: Path, folder: str) -> Path:
        """Make `root/folder` hold the archive's recordings; nothing is there until all of it is verified."""
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
                self._verify(target, f"{target} was found but")
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
                archive.unlink()  # else the next run would take it for a complete download
                raise
            archive.unlink()
        return root

    def _verify(self, folder: Path, what: str) -> None:
        recordings, _ = index_recordings(folder)
        found = fingerprint(recordings, read_contents(recordings))
        if found != self.sha256:
            raise ValueError(
                f"{what} does not hold the expected recordings ({len(recordings)} recordings, SHA-256 {found}, "
                f"expected {self.sha256}): remove the folder and run action=prepare again, or change dataset.download.url"
            )

    def _download(self, part: Path) -> None:
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                if response.status != 206:  # the server sends the whole file, not the missing rest
                    done = 0
                length = response.headers.get("Content-Length")
                total = (
                    done + int(length) if length else 0
                )  # 0: not known, as where GitHub makes the archive as it sends
                shown = progress("download (bytes)", total, for_all=True)
                with part.open("ab" if done else "wb") as file, shown as bar:
                    bar.advance(done)
                    while block := response.read(_BLOCK_BYTES):
                        file.write(block)
                        bar.advance(len(block))
            if total and part.stat().st_size != total:
                raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")
        except urllib.error.HTTPError as error:
            if error.code != 416:  # 416: the part file was complete already
                raise self._unreachable(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self.url} could not be downloaded ({error}): run action=prepare again to go on where it stopped, "
            f"or put the recordings in place by hand and set dataset.root"
        )


def _unpack(archive: Path, folder: str, target: Path) -> None:
    """The files of the archive's `*/folder/`, by their plain names, so that none lands outside `target`."""
    target.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                path = PurePosixPath(member.filename)
                if not member.is_dir() and path.parent.name == folder and path.name not in ("", ".", ".."):
                    with content.open(member) as source, (target / Path(path.name).name).open("wb") as file:
                        shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise ValueError(f"{archive} was no sound zip archive and is removed: run action=prepare again") from None
