"""Fetches files from the Hugging Face hub into the cache of ``huggingface_hub``, where all its users find them.

The library speaks to the hub: addresses, tokens, retries, $HF_ENDPOINT. This module resumes interrupted downloads in a later run, checks
the free space first, and makes a file visible only after its hash matches the hub's. It uses plain HTTP, because only that resumes.
Apart from this module and models/hub_header.py, nothing uses the network.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.filesize import decimal

from ..common.errors import FetchError
from ..common.files import replace_file
from .hub_cache import MAIN, cache_folder, is_commit, is_file, repository_folder
from .hub_client import explain, hub
from .source import FileSource

_PIECE = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it, at one commit of its repository."""

    repository: str
    revision: str  # the branch, tag or commit that was requested
    commit: str  # the commit that it stands for
    name: str  # the file's path in the repository
    size: int  # bytes
    digest: str  # SHA-256 of a large file, git's SHA-1 of a small one, as hex

    @property
    def path(self) -> Path:
        """The path of the fetched file."""
        return repository_folder(self.repository) / "snapshots" / self.commit / self.name

    @property
    def blob(self) -> Path:
        """The path of its contents."""
        return repository_folder(self.repository) / "blobs" / self.digest

    @property
    def partial(self) -> Path:
        """The path of the contents fetched so far."""
        return self.blob.with_name(f"{self.digest}.incomplete")

    @property
    def missing_bytes(self) -> int:
        """Bytes that remain to be fetched."""
        if is_file(self.blob) or is_file(self.path):
            return 0
        return self.size - self.fetched_bytes if self.fetched_bytes <= self.size else self.size

    @property
    def fetched_bytes(self) -> int:
        """Bytes of the partial file."""
        return self.partial.stat().st_size if is_file(self.partial) else 0


def describe_files(sources: Sequence[FileSource]) -> list[RemoteFile]:
    """Return what the hub says about these files, one entry for each shard. Raises FetchError."""
    infos: dict[tuple[str, str], Any] = {}
    files = []
    for source in sources:
        if source.hub is None:
            raise FetchError(f"{source.file}: no hub repository is named, so it cannot be fetched; add hub: owner/name")
        key = (source.hub, source.revision or MAIN)
        if key not in infos:
            infos[key] = _info(*key)
        files += [_remote_file(*key, infos[key], name) for name in source.names_on_hub]
    return list(dict.fromkeys(files))


def check_space(files: Sequence[RemoteFile]) -> None:
    """Refuse files for which there is no room on the disk. Raises FetchError."""
    needed = sum(file.missing_bytes for file in files)
    folder = cache_folder()
    free = shutil.disk_usage(next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))).free
    if needed > free:
        raise FetchError(
            f"{folder}: {decimal(free)} are free there, and {decimal(needed)} are needed; make room, or name another folder with HF_HOME"
        )


def fetch(file: RemoteFile, on_progress: Callable[[str, int], None]) -> None:
    """Fetch one file, or the rest of it, check it, put it in its place, and note its commit as that of the branch or tag.

    ``on_progress`` is called with "fetching" or "checking", and the bytes done. Raises FetchError if the file cannot be fetched, and the
    partial file stays for the next run; or if its hash is wrong, and it is removed.
    """
    library = hub()
    with _explain_errors(file):
        if not is_file(file.path):
            file.blob.parent.mkdir(parents=True, exist_ok=True)
            lock = cache_folder() / ".locks" / repository_folder(file.repository).name / f"{file.digest}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with library.utils.WeakFileLock(lock):  # the library's own lock: no other process writes this blob now
                if not is_file(file.blob):
                    _download(library, file, on_progress)
                    _check(file, on_progress)
                    os.replace(file.partial, file.blob)
                _put_in_place(file)
        if not is_commit(file.revision):
            replace_file(repository_folder(file.repository) / "refs" / file.revision, file.commit)


def _info(repository: str, revision: str) -> Any:
    """Return what the hub says about a repository and its files. Raises FetchError."""
    library = hub()
    seconds = library.constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        return library.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=seconds)
    except (library.errors.HTTPError, OSError, ValueError) as error:
        raise FetchError(explain(error, repository, revision)) from None


def _remote_file(repository: str, revision: str, info: Any, name: str) -> RemoteFile:
    """Return one of its files. Raises FetchError if it is missing, or cannot be fetched and checked."""
    files = {each.rfilename: each for each in info.siblings or ()}
    if name not in files:
        models = [each for each in files if each.endswith(".gguf")] or list(files)
        near = difflib.get_close_matches(name, models, n=3, cutoff=0.3) or models[:3]
        nearest = f"; nearest there: {', '.join(near)}" if near else "; it is empty"
        raise FetchError(f"{repository} has no file {name!r} at revision {revision}{nearest}")
    size, digest = files[name].size, files[name].lfs.sha256 if files[name].lfs else files[name].blob_id
    constants = hub().constants
    if not (is_commit(info.sha) and isinstance(size, int) and _DIGEST.fullmatch(str(digest))):  # they become file names here
        raise FetchError(f"{constants.ENDPOINT} does not report size and hash of {name} of {repository} as a hub does; check HF_ENDPOINT")
    if size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise FetchError(
            f"{name} of {repository} has {decimal(size)}, too much for plain HTTP; "
            f"fetch it with the hub's own tool, which uses the same cache: hf download {repository} {name}"
        )
    return RemoteFile(repository, revision, info.sha, name, size, digest)


def _download(library: Any, file: RemoteFile, on_progress: Callable[[str, int], None]) -> None:
    """Append what the partial file lacks; the library resumes a dropped connection a few times."""
    if file.fetched_bytes > file.size:
        file.partial.unlink()
    with file.partial.open("ab") as out, _small_and_silent_pieces(library):
        start = out.tell()
        on_progress("fetching", start)
        library.file_download.http_get(
            library.hf_hub_url(file.repository, file.name, revision=file.commit),
            _Counted(out, lambda done: on_progress("fetching", done)),
            resume_size=start,
            headers=library.utils.build_hf_headers(library_name="speccascade-local"),
            expected_size=file.size,
        )


def _check(file: RemoteFile, on_progress: Callable[[str, int], None]) -> None:
    """Remove the partial file if its hash is not the hub's. Raises FetchError."""
    large = len(file.digest) == hashlib.sha256().digest_size * 2
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with file.partial.open("rb") as partial:
        while piece := partial.read(_PIECE):
            digest.update(piece)
            on_progress("checking", partial.tell())
    if digest.hexdigest() != file.digest:
        file.partial.unlink()
        raise FetchError(
            f"{file.name} of {file.repository}: what came has the {'SHA-256' if large else 'git hash'} {digest.hexdigest()}, and the hub "
            f"says {file.digest}; it was removed. Fetch it again; if that does not help, the hub or a proxy is at fault"
        )


def _put_in_place(file: RemoteFile) -> None:
    """Link to the contents, as the library does; where links are not possible, move them."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.unlink(missing_ok=True)  # a link whose bytes are gone
    try:
        file.path.symlink_to(os.path.relpath(file.blob, file.path.parent))
    except OSError:
        os.replace(file.blob, file.path)


@contextlib.contextmanager
def _explain_errors(file: RemoteFile) -> Iterator[None]:
    """Turn errors of the hub, the network and the disk into a FetchError that says what to do."""
    library = hub()
    try:
        yield
    except library.errors.HTTPError as error:
        raise FetchError(f"{explain(error, file.repository, file.revision, file.name)}{_resume_note(file)}") from None
    except OSError as error:
        if error.errno is None:  # an error of the network, from the library
            what = explain(error, file.repository, file.revision, file.name)
        elif error.errno in _FULL:
            what = f"{cache_folder()}: no room for {file.name} ({error.strerror}); make room, or name another folder with HF_HOME"
        else:
            where = error.filename or cache_folder()
            what = f"{where}: cannot be written ({error.strerror}); change that, or name another folder with HF_HOME"
        raise FetchError(f"{what}{_resume_note(file)}") from None


def _resume_note(file: RemoteFile) -> str:
    done = file.fetched_bytes
    return f"; {decimal(done)} of {decimal(file.size)} are kept: the next run resumes there" if done else ""


@contextlib.contextmanager
def _small_and_silent_pieces(library: Any) -> Iterator[None]:
    """Make the library write smaller pieces, so that a dropped connection loses less, and show no progress bars of its own."""
    usual, were_off = library.constants.DOWNLOAD_CHUNK_SIZE, library.utils.are_progress_bars_disabled()
    library.constants.DOWNLOAD_CHUNK_SIZE = min(usual, _PIECE)
    library.utils.disable_progress_bars()
    try:
        yield
    finally:
        library.constants.DOWNLOAD_CHUNK_SIZE = usual
        if not were_off:
            library.utils.enable_progress_bars()


class _Counted:
    """A file open for writing that reports its length after each write."""

    def __init__(self, file: IO[bytes], on_length: Callable[[int], None]) -> None:
        self._file, self._on_length = file, on_length

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._on_length(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
