"""``speccascade serve``: serve pairs to programs that speak OpenAI's protocol."""

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


def run(
    chosen: options.ModelOptions,
    pairs: Annotated[list[str] | None, typer.Argument(metavar="PAIR", show_default="the bundled one", help="Pairs to serve.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; all but a loopback address need an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = PORT,
    api_key_file: Annotated[
        Path | None,
        typer.Option(show_default="$SPECCASCADE_API_KEY", help="File with API keys, one per line; requests must send one of them."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            show_default="none",
            help="Website or application whose pages may send requests, such as https://example.org; may be repeated.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default="none", help="Another host name of this server, such as host.docker.internal; may be repeated."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Share cached prompts only between requests with the same prompt_cache_key.")
    ] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RULE", show_default="none", help="Rule of your own that requests can name; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PAIR]",
            show_default="none",
            help="Another name for a pair in requests; PAIR is optional if only one is served; may be repeated.",
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Answer requests for any model name, or none, with the only pair.")
    ] = False,
    slots: Annotated[int, typer.Option(help="Number of requests answered at once, each with its own context.")] = SLOTS,
    max_queue: Annotated[int, typer.Option(help="Number of requests that may wait; others get a 429 with Retry-After.")] = QUEUE,
    timeout: Annotated[float, typer.Option(help="Seconds for one request, including its wait.")] = TIMEOUT_S,
    verbose: options.Verbose = 0,
) -> None:
    """Serve pairs over OpenAI's HTTP API until Ctrl-C: chat, completions, and a page for the browser.

    A request's model is the name of a pair, or PAIR@RULE, such as demo@token_v3:0.3.
    """
    set_log_level(verbose)
    try:
        from ...server.app import make_app
        from ...server.engine import Engine
        from ...server.http import listen, policy
        from ...server.request_settings import check_names
    except ImportError as error:
        missing = f"serving needs libraries that are not installed ({error})"
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
        stderr.print("warning: open to other machines without encryption; put a proxy with TLS in front", style="bold red")
    if policy.OPAQUE in allowed.origins and not keys:
        stderr.print("warning: any website can send the origin null; set an API key", style="bold red")
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(listen.bind(host, port))
        runtimes = {}
        for name in names:
            runtime = stack.enter_context(load_with_progress(name, chosen, verbose, timelines=slots))
            runtimes[runtime.pair.name] = runtime
        engine = stack.enter_context(Engine(runtimes, slots=slots, queue=max_queue))
        hint = " (API key needed)" if keys else ""
        app = make_app(engine, policy=allowed, rules=rules, timeout_s=timeout, aliases=aliases, any_model=any_model)
        stdout.print(f"serving {', '.join(runtimes)} at {listen.address_of(socket)}{hint}; end with Ctrl-C", markup=False, soft_wrap=True)
        listen.Server(app, engine, owns_process=True).run(sockets=[socket])
    stderr.print("stopped")


def _names(pairs: Sequence[str] | None, chosen: options.ModelOptions) -> list[str | None]:
    """Return the names of the pairs, after all their files are found. Raises SettingError and CatalogError."""
    names: list[str | None] = [*pairs] if pairs else [None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SettingError(f"pair {twice!r:.80} is named twice; name each once")
    for name in names:
        require_allowed(options.pair_of(name, chosen), chosen.allow_code, None, chosen.placements())
    return names


def _rules(texts: Sequence[str]) -> dict[str, Method]:
    """Return the rules of ``["mine=my_rules:Digits(0.3)"]`` by name. Raises SettingError."""
    rules: dict[str, Method] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        if not _RULE_NAME.fullmatch(name) or not spec:
            raise SettingError(f"--rule {text!r:.80} is not NAME=RULE, such as digits=my_rules:Digits(0.3)")
        if name in registry.METHODS or name == "expert" or name in rules:
            raise SettingError(f"--rule {text!r:.80}: the name {name} is taken; choose another")
        rules[name] = registry.parse(spec)
    return rules


def _aliases(texts: Sequence[str], pairs: Sequence[str]) -> dict[str, str]:
    """Return the pair of each alias in ``["gpt-4o=demo"]``, or with one pair ``["gpt-4o"]``. Raises SettingError."""
    aliases: dict[str, str] = {}
    for text in texts:
        name, equals, pair = text.partition("=")
        if name in aliases:
            raise SettingError(f"--alias {text!r:.80}: the name {name} is given twice; choose another")
        if not equals and len(pairs) > 1:
            raise SettingError(f"--alias {text!r:.80} names none of {', '.join(pairs)}; write it as NAME=PAIR")
        aliases[name] = pair if equals else pairs[0]
    return aliases
