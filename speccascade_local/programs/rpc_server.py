"""The child process of llama/rpc_process.py: runs llama.cpp's RPC server until its parent ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..common.endpoints import parse_endpoint
from ..llama.devices import device
from ..llama.rpc import serve


def _end_with_parent() -> None:
    """End with the parent: its end closes the pipe, whatever the cause."""
    sys.stdin.buffer.read()
    os._exit(0)


def main(arguments: Sequence[str]) -> int:
    """Serve. Arguments: HOST:PORT THREADS CACHE DEVICE ..., where CACHE is empty for none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends this process
    endpoint, threads, cache, *names = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(parse_endpoint(endpoint), [device(name) for name in names], int(threads), Path(cache) if cache else None)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
