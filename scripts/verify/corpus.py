"""Read the requests that once broke a server, or could: tests/data/corpus/*.json, for tests and for fuzz_server.py.

Each has a path and a body. Long values are written short: ``{"times": 3, "of": "a"}`` is a text or a list of that length,
``{"keys": 3, "of": 1}`` an object of that many keys, and ``{"lines": 3, "of": "r{next} ::= r{this}"}`` a text of numbered lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "corpus"


class Sent(NamedTuple):
    """One request. about: what is odd about it. statuses: what may be answered; empty for anything but a fault."""

    about: str
    path: str
    body: bytes
    headers: dict[str, str]
    statuses: tuple[int, ...]


def requests(name: str) -> Iterator[Sent]:
    """All of one file, such as ``requests``."""
    for each in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")):
        body = expanded(each["body"])
        content = body.encode() if isinstance(body, str) else json.dumps(body, separators=(",", ":")).encode()
        yield Sent(each["about"], each["path"], content, each.get("headers", {}), tuple(each.get("statuses", ())))


def expanded(value: Any) -> Any:
    """The same with what is written short at its full length."""
    if isinstance(value, list):
        return [expanded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"times", "of"}:
        of = expanded(value["of"])
        return of * value["times"] if isinstance(of, str) else [of] * value["times"]
    if value.keys() == {"keys", "of"}:
        return {str(each): expanded(value["of"]) for each in range(value["keys"])}
    if value.keys() == {"lines", "of"}:
        return "\n".join(value["of"].format(this=each, next=each + 1) for each in range(value["lines"]))
    if value.keys() == {"joined"}:
        return "".join(expanded(each) for each in value["joined"])
    return {key: expanded(each) for key, each in value.items()}
