"""The headers of model files on the Hugging Face hub, fetched without the rest of them.

What comes is kept in a file that is stretched to the size of the whole one, with a hole where the weights would be: a rehearsal needs no
more. Asks for ranges, each larger than the last, until the header is complete; a server that sends whole files instead is refused. Used
only where the user asks for it. Knows nothing of pairs.
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
#: A vocabulary of 260,000 ids with its merges takes 16 MB; what claims more than this is no header.
_LONGEST_HEADER = 256 << 20
_PARTIAL_CONTENT, _WHOLE = 206, 200


def fetch_headers(source: FileSource, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """A model's file, or all its shards, in ``folder``, of the right size and with nothing but a header in each. Returns the first.

    on_bytes: called with how many bytes have come. Raises FetchError, and ModelLoadError for what is no GGUF file.
    """
    files = describe_files([source])
    paths = [_fetch_header(file, folder / file.name.rpartition("/")[2], on_bytes) for file in files]
    return paths[0]


def _fetch_header(file: RemoteFile, path: Path, on_bytes: Callable[[int], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w+b") as kept:
            ranged = _Ranged(file, kept, on_bytes)
            layout_in(cast(Any, ranged), file.size, Path(file.repository, file.name))
            kept.flush()
            os.truncate(path, file.size)
    except OSError as error:
        raise FetchError(f"{path}: the header of {file.name} cannot be kept ({error.strerror or error}); is there room?") from None
    return path


class _Ranged:
    """A remote file that is read from front to back; what was not asked for yet is fetched when it is read."""

    def __init__(self, file: RemoteFile, kept: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._file, self._kept, self._on_bytes = file, kept, on_bytes
        self._at = self._come = 0
        self._next = _FIRST_RANGE

    def read(self, n: int) -> bytes:
        """As of a file."""
        while self._come < min(self._at + n, self._file.size):
            self._fetch()
        self._kept.seek(self._at)
        read = self._kept.read(n)
        self._at += len(read)
        return read

    def seek(self, n: int, _whence: int) -> None:
        """From here on; no other way is needed."""
        self._at += n

    def _fetch(self) -> None:
        end = min(max(self._next, self._at), self._file.size)
        if end > _LONGEST_HEADER:
            raise ModelLoadError(f"{_name(self._file)}: its header is longer than {_LONGEST_HEADER} bytes, which no model's is")
        data = _range(self._file, self._come, end)
        self._kept.seek(self._come)
        self._kept.write(data)
        self._come += len(data)
        self._next = 2 * end
        self._on_bytes(self._come)


def _range(file: RemoteFile, start: int, end: int) -> bytes:
    """The bytes from ``start`` up to ``end``. Raises FetchError."""
    library = hub()
    url = library.hf_hub_url(file.repository, file.name, revision=file.commit)
    headers = library.utils.build_hf_headers(library_name="speccascade-local")
    headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    try:
        # An error while the answer is read would make the library ask again without telling us, so it is not to.
        patience = {"retry_on_exceptions": (), "retry_on_status_codes": (408, 429), "timeout": library.constants.HF_HUB_DOWNLOAD_TIMEOUT}
        with library.utils.http_stream_backoff("GET", url, headers=headers, **patience) as response:
            library.utils.hf_raise_for_status(response)
            if response.status_code == _WHOLE:
                raise FetchError(
                    f"{_name(file)}: the hub would send all of its {file.size} bytes where its header was asked for (no range requests); "
                    "fetch it with 'speccascade pull', or look at another hub (HF_ENDPOINT)"
                )
            data = _first(response, end - start)
    except (library.errors.HTTPError, OSError) as error:
        raise FetchError(explain(error, file.repository, file.revision, file.name)) from None
    if response.status_code != _PARTIAL_CONTENT or len(data) != end - start:
        raise FetchError(f"{_name(file)}: of bytes {start} to {end} the hub sent {len(data)} ({response.status_code}); try again later")
    return data


def _first(response: Any, n: int) -> bytes:
    """No more than was asked for, however much is sent."""
    data = b""
    for piece in response.iter_bytes(1 << 16):
        data += piece
        if len(data) >= n:
            break
    return data[:n]


def _name(file: RemoteFile) -> str:
    return f"{file.name} of {file.repository}"
