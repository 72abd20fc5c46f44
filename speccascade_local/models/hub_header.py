"""Fetches the headers of model files on the Hugging Face hub without the weights.

A header is written into a file of the whole file's size, with a hole in place of the weights: a dry run needs no more. Ranges are
requested, each twice as long as all before, until the header is complete; a server that would send the whole file is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from ..common.errors import FetchError, ModelLoadError
from .gguf_layout import layout_in
from .hub_client import explain, hub
from .hub_download import RemoteFile, describe_files
from .source import FileSource

_FIRST_RANGE = 1 << 20
#: Bytes. A vocabulary of 260,000 ids with its merges takes 16 MB.
_MAX_HEADER = 256 << 20
_PARTIAL_CONTENT, _WHOLE = 206, 200


def fetch_headers(source: FileSource, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """Write the headers of a model's shards into ``folder``, each in a file of the right size, and return the first one's path.

    ``on_bytes`` is called with the number of bytes fetched of the present shard. Raises FetchError if a header cannot be fetched or
    written, and ModelLoadError if it is not GGUF.
    """
    paths = [_fetch_header(file, folder / file.name.rpartition("/")[2], on_bytes) for file in describe_files([source])]
    return paths[0]


def _fetch_header(file: RemoteFile, path: Path, on_bytes: Callable[[int], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w+b") as out:
            remote = _RangedFile(file, out, on_bytes)
            layout_in(cast(Any, remote), file.size, Path(file.repository, file.name))
            out.flush()
            os.truncate(path, file.size)
    except OSError as error:
        raise FetchError(f"{path}: the header of {file.name} cannot be written ({error.strerror or error}); is there room?") from None
    return path


class _RangedFile:
    """A remote file that is read from front to back, and fetched as far as it is read."""

    def __init__(self, file: RemoteFile, out: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._file, self._out, self._on_bytes = file, out, on_bytes
        self._at = self._fetched = 0
        self._next = _FIRST_RANGE

    def read(self, n: int) -> bytes:
        """Return the next bytes, as a file does."""
        while self._fetched < min(self._at + n, self._file.size):
            self._fetch()
        self._out.seek(self._at)
        read = self._out.read(n)
        self._at += len(read)
        return read

    def seek(self, n: int, _whence: int) -> None:
        """Move by ``n`` bytes from here, whatever the origin: no other use is needed."""
        self._at += n

    def _fetch(self) -> None:
        end = min(max(self._next, self._at), self._file.size)
        if end > _MAX_HEADER:
            raise ModelLoadError(f"{_name(self._file)}: its header is longer than {_MAX_HEADER} bytes, which no model's is")
        data = _range(self._file, self._fetched, end)
        self._out.seek(self._fetched)
        self._out.write(data)
        self._fetched += len(data)
        self._next = 2 * end
        self._on_bytes(self._fetched)


def _range(file: RemoteFile, start: int, end: int) -> bytes:
    """Return the bytes from ``start`` up to ``end``. Raises FetchError."""
    library = hub()
    url = library.hf_hub_url(file.repository, file.name, revision=file.commit)
    headers = library.utils.build_hf_headers(library_name="speccascade-local")
    headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    try:
        # The library must not retry silently after an error in the middle of a response.
        options = {"retry_on_exceptions": (), "retry_on_status_codes": (408, 429), "timeout": library.constants.HF_HUB_DOWNLOAD_TIMEOUT}
        with library.utils.http_stream_backoff("GET", url, headers=headers, **options) as response:
            library.utils.hf_raise_for_status(response)
            if response.status_code == _WHOLE:
                raise FetchError(
                    f"{_name(file)}: the hub knows no range requests and would send all {file.size} bytes; "
                    "fetch it with 'speccascade pull', or name another hub (HF_ENDPOINT)"
                )
            data = _read_at_most(response, end - start)
    except (library.errors.HTTPError, OSError) as error:
        raise FetchError(explain(error, file.repository, file.revision, file.name)) from None
    if response.status_code != _PARTIAL_CONTENT or len(data) != end - start:
        raise FetchError(f"{_name(file)}: the hub sent {len(data)} of the bytes {start} to {end} ({response.status_code}); try again later")
    return data


def _read_at_most(response: Any, n: int) -> bytes:
    """Return at most the ``n`` bytes that were requested, however many are sent."""
    data = b""
    for piece in response.iter_bytes(1 << 16):
        data += piece
        if len(data) >= n:
            break
    return data[:n]


def _name(file: RemoteFile) -> str:
    return f"{file.name} of {file.repository}"
