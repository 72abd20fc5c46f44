"""Write the reference pages from the code: docs/cli.md, docs/python.md and docs/http.md.

    python scripts/docs/reference.py

The sources are the verbs, the public names, the OpenAPI document and the table of fields. Each page has a written part, and between two
comments the part that this script writes. The script loads no model.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from openapi import http
from sections import cell, write_section

import speccascade_local as sc
from speccascade_local.bench.export import markdown_table
from speccascade_local.cli.app import VERBS, app
from speccascade_local.cli.options import in_groups
from speccascade_local.common.lazy import LazyProperty
from speccascade_local.runtime.settings import Settings
from speccascade_local.server.listing import description
from speccascade_local.server.openai.fields import FIELDS, RequestField

DOCS = Path(__file__).parents[2] / "docs"
#: Options that at least this many verbs share, and at least this many of them, get one table.
SHARED = 3
OWN_PANEL = "Options"
SETTINGS = "**settings"
#: Meanings of fields that the table of request fields does not have.
MEANINGS = {
    "stream_options.include_usage": "whether a stream ends with its usage",
    "content": "the text, in llama.cpp's form",
    "add_special": "whether BOS and EOS are added",
    "tokens": "the token ids",
}
#: Headings of a docstring's sections, and what the page has in their place.
HEADINGS = {"Args": "Parameters:", "Attributes": "Fields:", "Returns": "Returns:", "Yields": "Yields:", "Raises": "Raises:"}


# --- the command line


@dataclasses.dataclass(frozen=True)
class Option:
    """One line of a table. ``names`` are as the user types them; an argument has a placeholder."""

    panel: str
    names: str
    default: str
    help: str

    def cells(self) -> list[str]:
        names = f"<code>{self.names.replace('|', '&#124;')}</code>" if "|" in self.names else f"`{self.names}`"
        return [names, cell(self.default), cell(self.help)]


def options_of(verb: str) -> list[Option]:
    """Return the options of one verb, arguments first."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    annotations = {name: each.annotation for name, each in inspect.signature(in_groups(VERBS[verb])).parameters.items()}
    options = [_option(parameter, annotations[parameter.name]) for parameter in command.params if parameter.name in annotations]
    return sorted(options, key=lambda option: option.names.startswith("-"))


def _option(parameter: Any, annotation: Any) -> Option:
    value, (info, *_) = get_args(annotation)[0], annotation.__metadata__
    panel = info.rich_help_panel or OWN_PANEL
    if parameter.param_type_name == "argument":
        default = "required" if parameter.required else _default_text(info.show_default, None)
        return Option(panel, info.metavar or parameter.name.upper(), default, info.help)
    names = ", ".join(sorted(parameter.opts, key=lambda name: (len(name) < 3, name)))
    if parameter.secondary_opts:
        names += " / " + ", ".join(parameter.secondary_opts)
    takes = info.metavar or ("" if value is bool or info.count else _kind(value))
    default = "required" if parameter.required else _default_text(info.show_default, parameter.default)
    return Option(panel, f"{names} {takes}".strip(), default, info.help + _range(info))


def _kind(value: Any) -> str:
    """Return a word for the value of an option."""
    inner = next((each for each in get_args(value) if each is not type(None)), value) if get_args(value) else value
    inner = get_args(inner)[0] if get_origin(inner) is list else inner
    return {int: "N", float: "X", Path: "PATH"}.get(inner, "TEXT")


def _default_text(declared: object, value: object) -> str:
    if isinstance(declared, str):
        return declared
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if value is True:
        return "on"
    if declared is False or value is None or value is False or isinstance(value, tuple):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(info: Any) -> str:
    low, high = info.min, info.max
    if low is None and high is None:
        return ""
    return f" ({low} or more)" if high is None else f" ({high} or less)" if low is None else f" ({low} to {high})"


def cli() -> str:
    """Return all verbs with their own options, and then the options that several verbs share."""
    options = {verb: options_of(verb) for verb in VERBS}
    users: dict[Option, tuple[str, ...]] = {}
    for verb, own in options.items():
        for option in own:
            users[option] = (*users.get(option, ()), verb)
    groups: dict[tuple[str, tuple[str, ...]], list[Option]] = {}
    for option, verbs in users.items():
        groups.setdefault((option.panel, verbs), []).append(option)
    shared = {key: rows for key, rows in groups.items() if min(len(key[1]), len(rows)) >= SHARED}
    titles = _titles(list(shared))
    lines = []
    for verb, own in options.items():
        lines += [f"## {verb}", "", prose(VERBS[verb]), "", f"```console\n{_usage(verb, own)}\n```", ""]
        apart = [option for option in own if not any(option in rows for rows in shared.values())]
        lines += [_options_table(apart), ""] if apart else []
        also = [f"[{key[0]}](#{_anchor(titles[key])})" for key in shared if verb in key[1]]
        lines += [f"Also the options of {', '.join(also)}.", ""] if also else []
    lines += ["## Shared options", "", "Their names, defaults and meaning are the same for all verbs that take them.", ""]
    for key, rows in shared.items():
        lines += [f"### {titles[key]}", "", f"Of {', '.join(f'`{verb}`' for verb in key[1])}.", "", _options_table(rows), ""]
    return "\n".join(lines)


def _titles(groups: Sequence[tuple[str, tuple[str, ...]]]) -> dict[tuple[str, tuple[str, ...]], str]:
    """Return a heading for each group: the panel's name, with the verbs where two groups share it."""
    panels = [panel for panel, _ in groups]
    return {key: key[0] if panels.count(key[0]) == 1 else f"{key[0]}: {', '.join(key[1])}" for key in groups}


def _usage(verb: str, own: Sequence[Option]) -> str:
    arguments = [option.names for option in own if not option.names.startswith("-")]
    return " ".join(["speccascade", verb, *(["[OPTIONS]"] if len(own) > len(arguments) else []), *arguments])


def _options_table(rows: Iterable[Option]) -> str:
    return markdown_table([["option", "default", "what it does"], *(option.cells() for option in rows)]).strip()


# --- Python


def python() -> str:
    """Return all public names: how each is called, its docstring, and a class's fields and methods."""
    names = sorted(sc.__all__, key=lambda name: (_order(getattr(sc, name)), name))
    calls = [line for name in names for line in _name(name)]
    settings = ["## Settings", "", f"The keywords that `{SETTINGS}` stands for.", "", prose(Settings), ""]
    return "\n".join([*settings, markdown_table([["keyword", "type", "default"], *_fields(Settings)]).strip(), "", *calls])


def _order(thing: Any) -> int:
    """Sort functions first, then classes, then errors."""
    return 2 if inspect.isclass(thing) and issubclass(thing, Exception) else 1 if inspect.isclass(thing) else 0


def _name(name: str) -> list[str]:
    thing = getattr(sc, name)
    if not inspect.isclass(thing):
        return [f"## {name}", "", _call(f"sc.{name}", thing), "", prose(thing), ""]
    if issubclass(thing, Exception):
        above = next(base.__name__ for base in thing.__mro__[1:] if base.__name__ in (*sc.__all__, "Exception"))
        return [f"## {name}", "", f"A kind of `{above}`. {prose(thing)}", ""]
    lines = [f"## {name}", "", prose(thing), ""]
    fields = _fields(thing)
    if fields:
        lines += [markdown_table([["field", "type", "default"], *fields]).strip(), ""]
    public = {part: member for part, member in vars(thing).items() if part[0] != "_" and part not in getattr(thing, "_fields", ())}
    properties = [
        [f"`{part}`", cell(prose(member))]
        for part, member in public.items()
        if isinstance(member, (property, cached_property, LazyProperty))
    ]
    if properties:
        lines += [markdown_table([["property", "what it is"], *properties]).strip(), ""]
    for part, member in public.items():
        if isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            method = getattr(thing, part)
            holder = name if isinstance(member, (classmethod, staticmethod)) else name.lower()
            lines += [f"### {name}.{part}", "", _call(f"{holder}.{part}", method), "", prose(method), ""]
    return lines


def _fields(thing: type) -> list[list[str]]:
    """Return the fields of a dataclass or a named tuple."""
    if dataclasses.is_dataclass(thing):
        return [[f"`{each.name}`", f"`{_type(each.type).replace(' | ', ' or ')}`", _default(each)] for each in dataclasses.fields(thing)]
    defaults = getattr(thing, "_field_defaults", {})
    kinds = thing.__annotations__
    return [
        [f"`{each}`", f"`{_type(kinds[each]).replace(' | ', ' or ')}`", f"`{defaults[each]!r}`" if each in defaults else ""]
        for each in getattr(thing, "_fields", ())
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`" if len(repr(field.default)) < 40 else "an empty one"


def _call(name: str, function: Callable[..., Any]) -> str:
    """Return the signature as code: on one line, or with a line for each parameter."""
    signature = inspect.signature(function)
    keywords = {field.name for field in dataclasses.fields(Settings)}
    given = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    settings = keywords <= {parameter.name for parameter in given}
    parts: list[str] = []
    for parameter in given:
        if settings and parameter.name in keywords:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        hint = "" if parameter.annotation is parameter.empty or stars else f": {_type(parameter.annotation)}"
        value = "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{hint}{value}")
    parts += [SETTINGS] if settings else []
    end = "" if signature.return_annotation is signature.empty else f" -> {_type(signature.return_annotation)}"
    line = f"{name}({', '.join(parts)}){end}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"
    return f"```python\n{line}\n```"


def _value(default: object) -> str:
    """Return the default as code, or dots where it has no such form."""
    return "..." if "<" in repr(default) else repr(default)


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"ForwardRef\('([^']*)'[^)]*\)", r"\1", text)


# --- HTTP


def fields() -> str:
    """Return the table of all fields that clients send, and their treatment."""
    lines = [[f"`{each.name}`", each.servers, _treatment(each), cell(each.meaning)] for each in FIELDS]
    intro = (
        "How this server treats the fields that clients send. A field that is null counts as absent. A refused field is answered with 400 "
        "and its name, unless its value changes nothing. Fields that are not in the table are ignored."
    )
    return "\n".join(
        ["## Fields of requests", "", intro, "", markdown_table([["field", "who has it", "here", "what it means"], *lines]).strip(), ""]
    )


def _treatment(row: RequestField) -> str:
    passes = [f"`{json.dumps(each)}`" for each in row.neutral]
    beside = f" beside {' or '.join(f'`{each}`' for each in row.beside)}" if row.beside else ""
    treatments = {
        "honoured": "honoured",
        "mapped": f"read as {' or '.join(f'`{each}`' for each in row.to.split(' or '))}",
        "refused": f"refused{beside}" + (f"; passes: {', '.join(passes)}" if passes else ""),
        "ignored": "ignored, it changes no answer",
    }
    return cell(treatments[row.ours]) + (f" ({row.routes[0]})" if len(row.routes) == 1 else "")


# --- all of them


def prose(thing: Any) -> str:
    """Return a docstring as Markdown, with a list for each section in Google style."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(thing) or "").replace("``", "`")
    sections = re.split(rf"^({'|'.join(HEADINGS)}):\n", text, flags=re.MULTILINE)
    parts = [sections[0].strip()]
    for heading, body in zip(sections[1::2], sections[2::2]):
        indented, _, after = re.sub(r"\n(?=\S)", "\0", body.rstrip(), count=1).partition("\0")
        parts += [_section(heading, inspect.cleandoc("\n" + indented)), after.strip()]
    return "\n\n".join(part for part in parts if part)


def _section(heading: str, body: str) -> str:
    """Return one section of a docstring: entries as a list, what a function returns as a sentence."""
    if heading in ("Returns", "Yields"):
        return f"{HEADINGS[heading]} {' '.join(body.split())}"
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", body) if entry.strip()]
    items = [re.sub(r"^([\w., *]+?)(?: \([^)]*\))?: ", r"- `\1`: ", entry) for entry in entries]
    return "\n".join([HEADINGS[heading], "", *items])


def _anchor(title: str) -> str:
    """Return the anchor that code hosts and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def sections() -> dict[str, str]:
    """Return the generated section of each page."""
    meanings = {field.name: field.meaning for field in FIELDS} | MEANINGS
    return {"cli": cli(), "python": python(), "http": f"{http(description(), meanings)}\n{fields()}"}


def main() -> None:
    for name, section in sections().items():
        write_section(DOCS / f"{name}.md", name, section)


if __name__ == "__main__":
    main()
