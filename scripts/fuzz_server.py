#!/usr/bin/env python3
"""Thousands of requests made from the server's own OpenAPI description, valid and not: none may hang or be answered with a fault of ours.

    pip install "schemathesis>=4,<5"
    python scripts/fuzz_server.py [--cases 250] [--minutes 10]

Serves the bundled pair on a port of its own and has schemathesis ask it; ends with schemathesis' summary and exit code. This file is also
what schemathesis calls for each body: every other one names a pair that exists, and none asks for more than a few tokens.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

try:
    import schemathesis
except ImportError:
    sys.exit('schemathesis is missing; install it: pip install "schemathesis>=4,<5"')

SCRIPTS = Path(__file__).resolve().parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
FEW_TOKENS = 8
#: What random values are mostly refused in.
PICKY = ("tools", "functions", "response_format", "logit_bias", "grammar", "json_schema")


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """A body that can be answered, in a short time."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str) and zlib.crc32(repr(body).encode(errors="replace")) % 3:
            body = {name: value for name, value in body.items() if name not in PICKY} | {"model": "demo"}
            if isinstance(options := body.get("speccascade"), dict) and "rule" in options:
                options["rule"] = "strict"
        if "messages" in body or "prompt" in body:
            body.setdefault("max_tokens", FEW_TOKENS)
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > FEW_TOKENS:
                body[name] = FEW_TOKENS
    return body


def main() -> int:
    """Schemathesis' exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=250, help="of each route, besides those that cover the description")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    serve = [sys.executable, "-m", "speccascade_local", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = re.search(r"http://[\d.:]+", server.stdout.readline())
        if url is None:
            return 1
        command = [
            "schemathesis",
            "run",
            f"{url[0]}/openapi.json",
            "--checks",
            CHECKS,
            "-n",
            str(options.cases),
            "--phases",
            "coverage,fuzzing",
        ]
        path = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
        try:
            done = subprocess.run(
                [*command, "--request-timeout", "30", "--suppress-health-check", "all"],
                env={**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_server", "PYTHONPATH": path},
                timeout=60 * options.minutes,
                check=False,
            )
            return done.returncode
        except subprocess.TimeoutExpired:
            print(f"not done within {options.minutes:g} minutes", file=sys.stderr)
            return 1
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
