"""Starts, watches and ends the child process of llama.cpp's RPC server.

The server never returns and cannot be interrupted, so it needs a process of its own, which ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ..common.child_process import command
from ..common.endpoints import Endpoint
from ..common.errors import SessionError, SettingError
from ..common.files import PACKAGE
from .devices import device
from .rpc import check_support

#: Seconds until it must listen.
_START_S = 60.0


class Server:
    """A running server, which listens when the constructor returns; a context manager that ends it.

    Args:
        endpoint: where it listens.
        names: the devices that it offers.
        threads: for a CPU.
        cache: a folder that stores weights.
        on_line: called, from another thread, with each line that llama.cpp prints.

    Raises:
        SettingError: a build without RPC, an unknown device, a port in use, or an address of another machine.
        SessionError: the child ends at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        names: Sequence[str],
        *,
        threads: int,
        cache: Path | None = None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_support()
        for name in names:
            device(name)
        _check_free(endpoint)
        self.endpoint = endpoint
        self._last_lines: deque[str] = deque(maxlen=5)
        words = [*command("rpc_server"), str(endpoint), str(threads), str(cache.resolve() if cache else ""), *names]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=PACKAGE.parent)
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        """The id of the child process."""
        return self._child.pid

    def wait(self) -> None:
        """Wait until it ends, and raise SessionError with its last lines."""
        code = self._child.wait()
        self._reader.join(timeout=5)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        lines = "; ".join(self._last_lines) or "it printed nothing"
        raise SessionError(f"the RPC server at {self.endpoint} ended {how}: {lines}. Start it again")

    def close(self) -> None:
        """End it. Harmless when repeated."""
        self._child.kill()  # nothing is lost: clients find the connection closed either way
        self._child.wait()
        if self._child.stdin:
            self._child.stdin.close()
        self._reader.join(timeout=5)

    def _read(self, on_line: Callable[[str], None]) -> None:
        with self._child.stdout as stream:  # type: ignore[union-attr]  # a pipe, as asked for
            for raw in stream:
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self._last_lines.append(line)
                    on_line(line)

    def _wait_until_it_listens(self) -> None:
        end = time.monotonic() + _START_S
        here = ("127.0.0.1" if self.endpoint.host == "0.0.0.0" else self.endpoint.host, self.endpoint.port)
        while time.monotonic() < end:
            if self._child.poll() is not None:
                self.wait()
            with contextlib.suppress(OSError), socket.create_connection(here, timeout=1):
                return
            time.sleep(0.05)
        raise SessionError(f"the RPC server does not listen at {self.endpoint} after {_START_S:g} s; try another --port")


def _check_free(endpoint: Endpoint) -> None:
    """Raise SettingError with the reason why one cannot listen there; llama.cpp would give none."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as llama.cpp does: a port that was just left is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
            probe.listen(1)
        except OSError as error:
            reasons = {
                errno.EADDRINUSE: "another program listens there; choose another --port, or end that program",
                errno.EADDRNOTAVAIL: "not an address of this machine; --host 127.0.0.1 is for this machine only, 0.0.0.0 all its addresses",
                errno.EACCES: "not allowed; ports from 1024 up are free to use",
            }
            reason = reasons.get(error.errno or 0, error.strerror or str(error))
            raise SettingError(f"cannot listen at {endpoint}: {reason}") from error
