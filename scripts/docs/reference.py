"""Make the reference pages from the code: docs/cli.md from the verbs, docs/python.md from the public names, docs/http.md from OpenAPI
and the table of fields.

    python scripts/docs/reference.py

Each page has a few written words, and between its two comments what this script makes. Nothing is loaded and nothing measured.
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
#: Of an option that so many verbs have, and of that many at once, there is one table for all of them.
SHARED = 3
OWN_PANEL = "Options"
SETTINGS = "**settings"


# --- the command line


@dataclasses.dataclass(frozen=True)
class Option:
    """One line of a table. names: as they are typed; an argument has a placeholder."""

    panel: str
    names: str
    default: str
    help: str

    def cells(self) -> list[str]:
        names = f"<code>{self.names.replace('|', '&#124;')}</code>" if "|" in self.names else f"`{self.names}`"
        return [names, cell(self.default), cell(self.help)]


def options_of(verb: str) -> list[Option]:
    """Of one verb, arguments first."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    annotations = {name: each.annotation for name, each in inspect.signature(in_groups(VERBS[verb])).parameters.items()}
    found = [_option(parameter, annotations[parameter.name]) for parameter in command.params if parameter.name in annotations]
    return sorted(found, key=lambda option: option.names.startswith("-"))


def _option(parameter: Any, annotation: Any) -> Option:
    value, (told, *_) = get_args(annotation)[0], annotation.__metadata__
    panel = told.rich_help_panel or OWN_PANEL
    if parameter.param_type_name == "argument":
        default = "required" if parameter.required else _shown(told.show_default, None)
        return Option(panel, told.metavar or parameter.name.upper(), default, told.help)
    names = ", ".join(sorted(parameter.opts, key=lambda name: (len(name) < 3, name)))
    if parameter.secondary_opts:
        names += " / " + ", ".join(parameter.secondary_opts)
    takes = told.metavar or ("" if value is bool or told.count else _kind(value))
    default = "required" if parameter.required else _shown(told.show_default, parameter.default)
    return Option(panel, f"{names} {takes}".strip(), default, told.help + _range(told))


def _kind(value: Any) -> str:
    """What is to be typed behind an option."""
    inner = next((each for each in get_args(value) if each is not type(None)), value) if get_args(value) else value
    inner = get_args(inner)[0] if get_origin(inner) is list else inner
    return {int: "N", float: "X", Path: "PATH"}.get(inner, "TEXT")


def _shown(said: object, value: object) -> str:
    if isinstance(said, str):
        return said
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if value is True:
        return "on"
    if said is False or value is None or value is False or isinstance(value, tuple):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(told: Any) -> str:
    low, high = told.min, told.max
    if low is None and high is None:
        return ""
    return f" ({low} or more)" if high is None else f" ({high} or less)" if low is None else f" ({low} to {high})"


def cli() -> str:
    """Every verb with the options that are its own, and behind them those that several verbs share."""
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
        lines += [f"## {verb}", "", _prose(VERBS[verb]), "", f"```console\n{_usage(verb, own)}\n```", ""]
        apart = [option for option in own if not any(option in rows for rows in shared.values())]
        lines += [_options_table(apart), ""] if apart else []
        also = [f"[{key[0]}](#{_anchor(titles[key])})" for key in shared if verb in key[1]]
        lines += [f"Also the options of {', '.join(also)}.", ""] if also else []
    lines += ["## Shared options", "", "The same names, defaults and meaning wherever they are taken.", ""]
    for key, rows in shared.items():
        lines += [f"### {titles[key]}", "", f"Of {', '.join(f'`{verb}`' for verb in key[1])}.", "", _options_table(rows), ""]
    return "\n".join(lines)


def _titles(groups: Sequence[tuple[str, tuple[str, ...]]]) -> dict[tuple[str, tuple[str, ...]], str]:
    """A heading each: the panel's name, with the verbs where two groups have the same."""
    panels = [panel for panel, _ in groups]
    return {key: key[0] if panels.count(key[0]) == 1 else f"{key[0]}: {', '.join(key[1])}" for key in groups}


def _usage(verb: str, own: Sequence[Option]) -> str:
    arguments = [option.names for option in own if not option.names.startswith("-")]
    return " ".join(["speccascade", verb, *(["[OPTIONS]"] if len(own) > len(arguments) else []), *arguments])


def _options_table(rows: Iterable[Option]) -> str:
    return markdown_table([["option", "default", "what it does"], *(option.cells() for option in rows)]).strip()


# --- Python


def python() -> str:
    """Every public name: how it is called, what it says of itself, and a class's fields and methods."""
    names = sorted(sc.__all__, key=lambda name: (_order(getattr(sc, name)), name))
    calls = [line for name in names for line in _name(name)]
    settings = ["## Settings", "", f"Where a call takes `{SETTINGS}`, these keywords are meant.", "", _prose(Settings), ""]
    return "\n".join([*settings, markdown_table([["keyword", "type", "default"], *_fields(Settings)]).strip(), "", *calls])


def _order(thing: Any) -> int:
    """Functions, what they give, what goes wrong."""
    return 2 if inspect.isclass(thing) and issubclass(thing, Exception) else 1 if inspect.isclass(thing) else 0


def _name(name: str) -> list[str]:
    thing = getattr(sc, name)
    if not inspect.isclass(thing):
        return [f"## {name}", "", _call(f"sc.{name}", thing), "", _prose(thing), ""]
    if issubclass(thing, Exception):
        above = next(base.__name__ for base in thing.__mro__[1:] if base.__name__ in (*sc.__all__, "Exception"))
        return [f"## {name}", "", f"A kind of `{above}`. {_prose(thing)}", ""]
    lines = [f"## {name}", "", _prose(thing), ""]
    fields = _fields(thing)
    if fields:
        lines += [markdown_table([["field", "type", "default"], *fields]).strip(), ""]
    public = {part: member for part, member in vars(thing).items() if part[0] != "_" and part not in getattr(thing, "_fields", ())}
    told = [
        [f"`{part}`", cell(_prose(member))]
        for part, member in public.items()
        if isinstance(member, (property, cached_property, LazyProperty))
    ]
    if told:
        lines += [markdown_table([["property", "what it tells"], *told]).strip(), ""]
    for part, member in public.items():
        if isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            method = getattr(thing, part)
            holder = name if isinstance(member, (classmethod, staticmethod)) else name.lower()
            lines += [f"### {name}.{part}", "", _call(f"{holder}.{part}", method), "", _prose(method), ""]
    return lines


def _fields(thing: type) -> list[list[str]]:
    """Of a dataclass or a named tuple."""
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
    """The signature as code: on one line, or a parameter each."""
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
    """As it is written, or where it has no such form, dots."""
    return "..." if "<" in repr(default) else repr(default)


def _type(annotation: Any) -> str:
    said = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"ForwardRef\('([^']*)'[^)]*\)", r"\1", said)


# --- HTTP


def fields() -> str:
    """Every field that clients send, and what becomes of it."""
    lines = [[f"`{each.name}`", each.servers, _becomes(each), cell(each.meaning)] for each in FIELDS]
    intro = (
        "What becomes of the fields that clients of this and of other servers send. Null is as if a field was not there. A refused one is "
        "answered with 400 and its name, unless it has a value that changes nothing. What does not stand here is ignored."
    )
    return "\n".join(
        ["## Fields of requests", "", intro, "", markdown_table([["field", "who has it", "here", "what it asks for"], *lines]).strip(), ""]
    )


def _becomes(row: RequestField) -> str:
    passes = [f"`{json.dumps(each)}`" for each in row.neutral]
    beside = f" beside {' or '.join(f'`{each}`' for each in row.beside)}" if row.beside else ""
    told = {
        "honoured": "honoured",
        "mapped": f"read as {' or '.join(f'`{each}`' for each in row.to.split(' or '))}",
        "refused": f"refused{beside}" + (f"; passes: {', '.join(passes)}" if passes else ""),
        "ignored": "ignored, it changes no answer",
    }
    return cell(told[row.ours]) + (f" ({row.routes[0]})" if len(row.routes) == 1 else "")


# --- all of them


def _prose(thing: Any) -> str:
    """A docstring as Markdown. Where it tells of parameters or fields one after another, each gets a line."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(thing) or "").replace("``", "`")
    names = {*getattr(thing, "_fields", ()), *getattr(thing, "__dataclass_fields__", ())}
    if inspect.isfunction(thing):
        names |= set(inspect.signature(thing).parameters)
    return "\n\n".join(_listed(paragraph, names) for paragraph in text.split("\n\n"))


def _listed(paragraph: str, names: Iterable[str]) -> str:
    """``a: this. b 0: that.`` as a list."""
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    begin = re.compile(rf"(?:^|(?<=[.;] )|(?<=\.\) ))((?:{name})(?:, (?:{name}))*)((?: [^\s:.]+)?): ")
    line, _, end = " ".join(paragraph.split()).partition(" Raises ")
    found = list(begin.finditer(line))
    if len(found) < 2:
        return paragraph
    cuts = [match.start() for match in found] + [len(line)]
    parts = zip(found, cuts[1:], strict=True)
    items = [f"- `{match[1]}`{match[2]}: {line[match.end() : cut].strip().removesuffix(';')}" for match, cut in parts]
    return "\n\n".join(part for part in (line[: cuts[0]].strip(), "\n".join(items), f"Raises {end}" if end else "") if part)


def _anchor(title: str) -> str:
    """As forges and the site make it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def sections() -> dict[str, str]:
    """What stands in which page."""
    return {"cli": cli(), "python": python(), "http": f"{http(description())}\n{fields()}"}


def main() -> None:
    for name, section in sections().items():
        write_section(DOCS / f"{name}.md", name, section)


if __name__ == "__main__":
    main()
