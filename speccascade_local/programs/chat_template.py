"""A program of its own: renders Jinja chat templates, which come out of downloaded files, one request per line.

Reads ``{"source": template, "variables": mapping or null}`` from stdin and answers ``{"text": ...}``, ``{"refused": ...}`` where the
template fails, or ``{"broken": ...}`` where it does not compile, each as one line of JSON. A request that takes longer than the seconds
of the first argument ends the process, even inside of one long operation; the second argument is the most characters that are answered.
Imports nothing of this package, so that it starts quickly, and knows nothing of who asks (tokens/template_process.py) or of what messages are.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import sys
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """``{% generation %}...{% endgeneration %}``, by which training code finds the assistant's part: here only what is inside."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between both tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Plain JSON, as chat templates expect; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: Any) -> NoReturn:
    """What a template calls to refuse its messages."""
    raise jinja2.TemplateError(str(message))


def now(form: str) -> str:
    """What a template calls for the date."""
    return datetime.datetime.now().strftime(form)


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """A template in the sandbox, with what published chat templates use. Raises what Jinja raises."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=refuse, strftime_now=now)
    return environment.from_string(source)


def answer(request: dict[str, Any], most: int) -> dict[str, str]:
    """What is answered to a request. A stranger's program may fail in any way, and none of them is a fault of ours."""
    try:
        template = compile_template(request["source"])
    except Exception as error:
        return {"broken": str(error) or type(error).__name__}
    if request["variables"] is None:
        return {"text": ""}
    try:
        text = template.render(request["variables"])
    except Exception as error:
        return {"refused": str(error) or type(error).__name__}
    return {"text": text} if len(text) <= most else {"refused": f"it writes {len(text)} characters; {most} are allowed"}


def main(seconds: float, most: int) -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True)  # a thread that Python's own lock cannot hold back
        reply = json.dumps(answer(json.loads(line), most))
        faulthandler.cancel_dump_traceback_later()
        print(reply, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
