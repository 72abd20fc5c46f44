"""``speccascade serve``: loaded pairs for every program that speaks OpenAI's protocol."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ...common.endpoints import is_loopback
from ...common.errors import SettingError
from ...common.pip import install_extra
from ...common.validation import finite_number, whole_number
from ...llama.context import MAX_TIMELINES
from ...rules import registry
from ...rules.rule import Method
from ...runtime.load import require_allowed
from .. import options
from ..load import load_with_progress, set_log_level
from ..terminal import stderr, stdout

PORT, SLOTS, QUEUE, TIMEOUT_S = 8080, 4, 64, 600.0
_RULE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,60}")


def serve(
    chosen: options.ModelOptions,
    pairs: Annotated[list[str] | None, typer.Argument(metavar="PAIR", show_default="the bundled one", help="Pairs to serve.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; any but this machine's own needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at; 0 takes any that is free.")] = PORT,
    api_key_file: Annotated[
        Path | None,
        typer.Option(show_default="$SPECCASCADE_API_KEY", help="A file with API keys, one per line; requests must bring one of them."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            show_default="none",
            help="A website or application whose pages may ask, as https://example.org or app://obsidian.md; may be repeated.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="none",
            help="Another name by which the server is reached, as host.docker.internal; may be repeated.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Nothing that was read for one prompt_cache_key serves another, or a request without one.")
    ] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RULE", show_default="none", help="A rule of your own that requests may name; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PAIR]",
            show_default="none",
            help="Another name that requests may give a pair; may be repeated; needs no pair if one is served.",
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Answer requests for any model's name, or for none, by the only pair.")
    ] = False,
    slots: Annotated[int, typer.Option(help="So many requests are answered at once, each with a context of its own.")] = SLOTS,
    max_queue: Annotated[int, typer.Option(help="So many requests may wait; more are told when to come back.")] = QUEUE,
    timeout: Annotated[float, typer.Option(help="Seconds for one request, waiting included.")] = TIMEOUT_S,
    verbose: options.Verbose = 0,
) -> None:
    """Answer over HTTP as OpenAI's API does, until Ctrl-C: chat and completions, and a page to look at in a browser.

    A request's model is the name of a pair, or PAIR@RULE, such as demo@token_v3:0.3.
    """
    set_log_level(verbose)
    try:
        from ...server.app import make_app
        from ...server.engine import Engine
        from ...server.http import listen, policy
        from ...server.request_settings import check_names
    except ImportError as error:
        missing = f"serving needs libraries that are not installed here ({error})"
        raise SettingError(f"{missing}; install them: {install_extra('serve')}") from None
    keys = policy.api_keys(api_key_file)
    allowed = policy.Policy(host, keys, policy.origins_of(allow_origin), tuple(allow_host or ()), private)
    whole_number("--port", port, 0, 65535)
    whole_number("--slots", slots, 1, MAX_TIMELINES)
    whole_number("--max-queue", max_queue, 1, 10**6)
    finite_number("--timeout", timeout, 0.001, 10**6, "a number of seconds above 0")
    rules = _rules(rule or [])
    names = _names(pairs, chosen)
    known = [options.pair_of(name, chosen).name for name in names]
    aliases = _aliases(alias or [], known)
    check_names(known, aliases, any_model)
    if not is_loopback(host):
        stderr.print("warning: nothing is encrypted, and other machines are let in; put a proxy with TLS in front", style="bold red")
    if policy.OPAQUE in allowed.origins and not keys:
        stderr.print("warning: any website can send the origin null, and no API key is needed", style="bold red")
    with contextlib.ExitStack() as open_things:
        socket = open_things.enter_context(listen.bind(host, port))
        runtimes = {}
        for name in names:
            runtime = open_things.enter_context(load_with_progress(name, chosen, verbose, timelines=slots))
            runtimes[runtime.pair.name] = runtime
        engine = open_things.enter_context(Engine(runtimes, slots=slots, queue=max_queue))
        needed = " (API key needed)" if keys else ""
        app = make_app(engine, policy=allowed, rules=rules, timeout_s=timeout, aliases=aliases, any_model=any_model)
        stdout.print(
            f"serving {', '.join(runtimes)} at {listen.address_of(socket)}{needed}; end with Ctrl-C",
            markup=False,
            soft_wrap=True,
        )
        listen.Server(app, engine, owns_process=True).run(sockets=[socket])
    stderr.print("stopped")


def _names(pairs: Sequence[str] | None, chosen: options.ModelOptions) -> list[str | None]:
    """Which pairs are loaded; their files are looked for before the first one is. Raises SettingError and CatalogError."""
    names: list[str | None] = [*pairs] if pairs else [None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SettingError(f"pair {twice!r:.80} is named twice; name each once")
    for name in names:
        require_allowed(options.pair_of(name, chosen), chosen.allow_code, None, chosen.placements())
    return names


def _rules(given: Sequence[str]) -> dict[str, Method]:
    """``["mine=my_rules:Digits(0.3)"]``. Raises SettingError."""
    found: dict[str, Method] = {}
    for text in given:
        name, _, spec = text.partition("=")
        if not _RULE_NAME.fullmatch(name) or not spec:
            raise SettingError(f"--rule {text!r:.80} is not NAME=RULE, such as digits=my_rules:Digits(0.3)")
        if name in registry.METHODS or name == "expert" or name in found:
            raise SettingError(f"--rule {text!r:.80}: the name {name} is taken; choose another")
        found[name] = registry.parse(spec)
    return found


def _aliases(given: Sequence[str], pairs: Sequence[str]) -> dict[str, str]:
    """``["gpt-4o=demo"]``, or with one pair ``["gpt-4o"]``. Raises SettingError."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, pair = text.partition("=")
        if name in found:
            raise SettingError(f"--alias {text!r:.80}: the name {name} is given twice; choose another")
        if not equals and len(pairs) > 1:
            raise SettingError(f"--alias {text!r:.80} names none of {', '.join(pairs)}; write it as NAME=PAIR")
        found[name] = pair if equals else pairs[0]
    return found
