"""Loads a pair: which files, whether they fit, how much context, and what is freed if anything fails."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import CatalogError, ModelLoadError, SettingError
from ..common.files import expand_user
from ..common.validation import whole_number
from ..decoding.ngram import NgramSession
from ..llama.context import MAX_TIMELINES, LlamaContext
from ..llama.devices import devices
from ..llama.model import LlamaModel
from ..llama.parameters import gpu_layers, snapshots
from ..llama.rpc import connect
from ..llama.session import LlamaSession
from ..llama.tokenizer import shared_vocab_size
from ..machine.dry_run import plan_models
from ..machine.memory import choose_layers, free_memory, memory_need, require_fit
from ..machine.profile_cache import read_histories
from ..models import catalog
from ..models.catalog import Pair
from ..models.gguf_header import layers_of
from ..models.placement import DEFAULT_CONTEXT, QUANTIZED, Placement
from ..models.source import NGRAM
from ..rules import registry
from ..rules.rule import Method
from ..tokens.sampler import keep_freed_pages
from .runtime import Runtime

log = logging.getLogger(__name__)


def load(
    pair: str | None = None,
    *,
    drafter: str | os.PathLike[str] | None = None,
    expert: str | os.PathLike[str] | None = None,
    models: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    placement: Placement | Mapping[str, Placement] | None = None,
    check_memory: bool = True,
    rule: str | Method | None = None,
    profile: bool = True,
    learnt: Mapping[str, Any] | None = None,
    timelines: int = 1,
    on_progress: Callable[[str, float], None] | None = None,
    allow_code: bool = False,
    exact: bool = False,
) -> Runtime:
    """Load a pair: by name from ``models.yaml`` (None: the bundled one), or by the paths of two GGUF files.

    Raises CatalogError, ModelLoadError, PairError, SettingError and SessionError; what was loaded until then is freed.

    Args:
        pair: a name; None for the bundled pair, unless two files are given.
        drafter: a file, or ``"ngram"``: no second model, drafts are copied from the text.
        expert: a file.
        models: a ``models.yaml`` to look in first.
        n_ctx: tokens that both contexts hold; default 4096, or what both models were trained for.
        n_threads: default what is fastest (1 for tiny models).
        placement: layers on the GPU, devices, cache types and adapters, for both models or by role.
        check_memory: refuse before loading what does not fit the free memory.
        rule: in place of the pair's own.
        profile: measure now how fast the models are on this machine, or read an earlier measurement; False waits until automatic lengths
            need it.
        learnt: what :meth:`Runtime.learnt` of an earlier runtime returned.
        timelines: how many texts of ``n_ctx`` tokens the models hold at once, for :meth:`Runtime.shared`; multiplies the caches' memory.
        on_progress: called with "drafter", "expert" or "profile", and the progress, 0..1.
        allow_code: run code that a ``models.yaml`` names as a pair's rule, and use the machines of its ``rpc``, even where the file is not
            the user's own.
        exact: make the expert's rows equal to the bit in batches and alone, so that under ``strict`` at temperature 0 drafts change no
            token of its text. Batches are slower, and loading takes longer.
    """
    chosen = choose(pair, drafter, expert, models)
    require_allowed(chosen, allow_code, rule, placement)
    own = registry.parse(rule) if rule else _own_rule(chosen)  # refused before anything is loaded
    histories = read_histories(learnt or {})
    if n_threads is not None:
        whole_number("n_threads (--threads)", n_threads, 1, 1024)
    whole_number("timelines", timelines, 1, MAX_TIMELINES)
    placements, size = _plan(chosen, n_ctx, placement, check_memory, timelines, exact)

    def open_model(role: str, path: Path) -> LlamaModel:
        report = (lambda fraction: on_progress(role, fraction)) if on_progress else None
        model = LlamaModel(path, placement=placements[role], on_progress=report)
        resources.callback(model.close)
        return model

    def open_session(role: str, model: LlamaModel) -> LlamaSession:
        context = LlamaContext(model, n_ctx=size, n_threads=n_threads, n_timelines=timelines, n_snapshots=snapshots(role))
        resources.callback(context.close)
        return LlamaSession(context, n_vocab=n_vocab)

    keep_freed_pages()
    with ExitStack() as resources:  # frees in the order contexts, models, if anything below fails
        opened = {role: open_model(role, path) for role, path in chosen.files.items()}
        expert_tokenizer = opened["expert"].tokenizer
        n_vocab = expert_tokenizer.n_vocab
        if "drafter" in opened:
            n_vocab = shared_vocab_size(opened["drafter"].tokenizer, expert_tokenizer)
        sessions = {role: open_session(role, model) for role, model in opened.items()}
        drafting = sessions["drafter"] if "drafter" in sessions else NgramSession(n_vocab, size)
        runtime = Runtime(chosen, own, drafting, sessions["expert"], resources.pop_all(), histories)
    try:
        if profile:
            runtime.profile(on_step=(lambda fraction: on_progress("profile", fraction)) if on_progress else lambda _: None)
    except BaseException:
        runtime.close()
        raise
    return runtime


def _plan(
    pair: Pair, n_ctx: int | None, placement: Placement | Mapping[str, Placement] | None, check_memory: bool, timelines: int, exact: bool
) -> tuple[dict[str, Placement], int]:
    """Return how each model is loaded, and the size of the contexts. A dry run without weights refuses here what cannot work.

    Raises ModelLoadError and SettingError.
    """
    files, given = pair.files, placements_of(pair, placement)
    if exact:
        given["expert"] = replace(given["expert"], exact=True)
    askable = n_ctx if isinstance(n_ctx, int) and n_ctx >= 1 else None
    there = (*devices(), *connect(given["expert"].rpc))
    models = plan_models(files, n_ctx=askable, placements={role: replace(each, rpc=()) for role, each in given.items()})
    for model in models.values():
        if model.refused:
            raise ModelLoadError(f"{model.path}: {model.refused}; choose a model that writes from left to right")
    shortest, trained = min(((role, model.n_ctx_train) for role, model in models.items()), key=lambda each: each[1])
    most = f", which is what the models were trained for (pair {pair.name}: its {shortest} for {trained})"
    size = min(DEFAULT_CONTEXT, trained) if n_ctx is None else whole_number("n_ctx (--ctx)", n_ctx, 1, trained, most)
    if given.get("drafter", Placement()).cache_type in QUANTIZED:
        log.warning("a quantized cache of the drafter can halve how many of its tokens are accepted; f16 costs little memory there")
    layers = {role: layers_of(path) for role, path in files.items()} if any(device.is_gpu for device in there) else {}
    placements = choose_layers(given, models, layers, size, there, timelines)
    if check_memory:
        counts = {role: gpu_layers(placement) for role, placement in placements.items()}
        needs = {role: memory_need(model, size, layers.get(role), counts[role], timelines) for role, model in models.items()}
        require_fit(needs, placements, size, free_memory(), there)
    return placements, size


def placements_of(pair: Pair, given: Placement | Mapping[str, Placement] | None) -> dict[str, Placement]:
    """Return the placement of each model: as given, for both or by role, else as ``models.yaml`` says. Raises SettingError."""
    usual = Placement()
    wanted = given if isinstance(given, Mapping) else dict.fromkeys(pair.files, given or usual)
    if unknown := wanted.keys() - {"drafter", "expert"}:
        raise SettingError(f"placement names the role {min(unknown)!r:.40}; roles are drafter and expert")
    placements = {}
    for role, source in pair.models.items():
        names = ("gpu_layers", "device", "cache_type", "lora")
        named: dict[str, Any] = {name: getattr(source, name) for name in names} | {"rpc": pair.rpc if role == "expert" else ()}
        own = wanted.get(role, usual)
        open_to = {name for name, value in named.items() if value not in (None, ()) and getattr(own, name) == getattr(usual, name)}
        placements[role] = replace(own, **{name: named[name] for name in open_to})
    if any(placement.rpc for role, placement in placements.items() if role != "expert"):
        raise SettingError("rpc is given for the drafter; only the expert's layers are worth sending to another machine")
    return placements


def require_allowed(pair: Pair, allow_code: bool, rule: str | Method | None, placement: Placement | Mapping[str, Placement] | None) -> None:
    """Refuse code and machines that the pair's file names, unless they are allowed or the caller replaces them.

    Raises CatalogError with the file, the line, and how to allow it.
    """
    expert = placement.get("expert") if isinstance(placement, Mapping) else placement
    replaced = {"code": bool(rule), "rpc": bool(expert and expert.rpc)}
    for name, demand in pair.demands.items():
        if not (allow_code or replaced[name]):
            raise CatalogError(
                f"{demand:.500}; only your own file may do that: allow it with --allow-code (in Python allow_code=True), "
                f"or put the pair into {catalog.user_file()}"
            )


def _own_rule(pair: Pair) -> Method:
    """Return the pair's own rule. The folder of the file that names it is searched for the user's code too."""
    if pair.rule is None or pair.source is None:
        return registry.DEFAULT
    beside = str(pair.source.parent.resolve())
    added = beside not in sys.path
    if added:
        sys.path.append(beside)
    try:
        return registry.parse(pair.rule)
    except SettingError as error:
        raise SettingError(f"pair {pair.name!r} in {pair.source}: {error}") from error
    finally:
        if added:
            sys.path.remove(beside)


def choose(
    pair: str | None,
    drafter: str | os.PathLike[str] | None,
    expert: str | os.PathLike[str] | None,
    models: str | os.PathLike[str] | None,
    *,
    complete: bool = True,
) -> Pair:
    """Return the pair that :func:`load` would load for these arguments. Raises SettingError and CatalogError.

    With ``complete`` all its files must exist.
    """
    if drafter is None and expert is None:
        named = catalog.BUNDLED_PAIR if pair is None else pair
        chosen = catalog.default() if pair is None and models is None else catalog.find(named, models)
    elif drafter is None or expert is None:
        raise SettingError("a drafter file needs an expert file, and vice versa; name both, or a pair")
    elif pair is not None or models is not None:
        raise SettingError("two files were named, and a pair or a models.yaml as well; name one or the other")
    elif str(expert) == NGRAM:
        raise SettingError("the expert is 'ngram', which only copies; only the drafter may be")
    else:
        chosen = Pair("custom", expand_user(drafter), expand_user(expert))
    if complete:
        chosen.check_files()
    return chosen
