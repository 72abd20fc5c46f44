"""The child process of tokens/template_process.py: renders Jinja chat templates from downloaded files, one request per line.

Input, a line of JSON each: ``{"source": template, "variables": mapping or null}``. Output: ``{"text": ...}``, ``{"refused": ...}`` where
the template fails, or ``{"broken": ...}`` where it does not compile. Arguments: the seconds after which a request ends the process, even
inside one long operation, and the most characters of an answer. It imports nothing of this package, so that it starts quickly.
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
    """``{% generation %}...{% endgeneration %}``, which marks the assistant's part for training code: here only its content."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between both tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """Return plain JSON, as chat templates expect; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: Any) -> NoReturn:
    """Refuse the messages; a template calls this."""
    raise jinja2.TemplateError(str(message))


def now(form: str) -> str:
    """Return the date; a template calls this."""
    return datetime.datetime.now().strftime(form)


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """Compile a template in the sandbox, with the functions that published chat templates use. Raises what Jinja raises."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=refuse, strftime_now=now)
    return environment.from_string(source)


def answer(request: dict[str, Any], most: int) -> dict[str, str]:
    """Answer one request. A stranger's template may fail in any way, and every failure becomes an answer."""
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
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True)  # a thread that Python's own lock cannot hold back
        reply = json.dumps(answer(json.loads(line), most))
        faulthandler.cancel_dump_traceback_later()
        print(reply, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
