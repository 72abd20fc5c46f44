"""``speccascade check``: check whether two models pair, or rank the models on this machine as drafters for an expert."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...common.errors import ModelLoadError, SettingError, SpeccascadeError
from ...machine.check import EXIT_CODES, NamedFile, PairReport, check
from ...machine.findings import Finding
from ...machine.profile_cache import measured_models
from ...machine.suggest import MAX_SUGGESTIONS, Suggestions, suggest
from ...models.catalog import Pair
from ...models.hub_header import fetch_headers
from ...models.local import LocalModels, known_places, models_in
from ...models.source import ModelSource
from ...runtime.load import placements_of
from .. import options
from ..check_view import show_suggestions, show_verdict
from ..load import progress_of, set_log_level
from ..terminal import print_error

_NO = EXIT_CODES["no"]

Suggest = Annotated[
    Path | None, typer.Option(metavar="EXPERT", help="GGUF file of an expert: rank the models on this machine as its drafters.")
]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        show_default="those of the Hugging Face hub, LM Studio, Ollama and llama.cpp",
        help="With --suggest: search this folder; may be repeated.",
    ),
]
Best = Annotated[int, typer.Option(min=1, help="With --suggest: number of drafters; each takes a second or two.")]
Remote = Annotated[bool, typer.Option("--remote", help="Fetch only the headers of files that are not on this machine. Uses the network.")]


def run(
    chosen: options.ModelOptions,
    pair: options.PairName = None,
    suggest: Suggest = None,
    folder: Folders = None,
    best: Best = MAX_SUGGESTIONS,
    remote: Remote = False,
    as_json: options.Json = False,
    verbose: options.Verbose = 0,
) -> None:
    """Check compatibility, memory and expected speed of two models without loading them.

    Exit code 0: yes. 1: yes, with warnings. 2: no, or an error: files that are missing or damaged, wrong options, no network. With
    --suggest 0 if a model pairs, else 2.
    """
    set_log_level(verbose)
    try:
        if suggest is not None:
            if pair or chosen.drafter or chosen.expert or chosen.models or remote:
                raise SettingError("--suggest takes an expert's file and searches for drafters; omit the pair, other files and --remote")
            raise typer.Exit(_suggest(suggest, folder or [], best, as_json, verbose))
        if folder:
            raise SettingError("--folder says where --suggest searches; name the expert too: --suggest EXPERT")
        report = _check(options.pair_of(pair, chosen, complete=False), chosen, remote, verbose)
    except (SpeccascadeError, OSError) as error:  # OSError: for example no disk space for headers
        print_error(error)
        raise typer.Exit(_NO) from error
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        show_verdict(report)
    raise typer.Exit(EXIT_CODES[report.answer])


def _check(pair: Pair, chosen: options.ModelOptions, remote: bool, verbose: int) -> PairReport:
    """Return the report on a pair. Raises SettingError, CatalogError and FetchError."""
    placements = {role: replace(each, rpc=()) for role, each in placements_of(pair, chosen.placements()).items()}
    name = pair.name if pair.source else " + ".join(path.name for path in pair.files.values())
    with tempfile.TemporaryDirectory(prefix="speccascade-") as temporary:
        try:
            files = {role: _file(pair, role, source, Path(temporary), remote, verbose) for role, source in pair.models.items()}
        except ModelLoadError as error:
            return PairReport(name, (Finding("no", "files", str(error)),))
        must_fit = chosen.check_memory and not pair.rpc
        report = check(name, files, n_ctx=chosen.ctx, placements=placements, measured=measured_models(), must_fit=must_fit)
    if pair.rpc:
        others = f"{', '.join(pair.rpc)} share the expert, but were not asked; all memory is counted as needed here"
        report = replace(report, findings=(*report.findings, Finding("note", "machines", others)))
    return report


def _file(pair: Pair, role: str, source: ModelSource, temporary: Path, remote: bool, verbose: int) -> NamedFile:
    """Return the model's file, or its header in a file of the same size. Raises ModelLoadError and FetchError."""
    for adapter in source.sources[1:]:
        if adapter.missing:
            raise ModelLoadError(f"the {role}'s LoRA adapter {adapter.file or adapter.path} is not on this machine; fetch it first")
    if remote and source.hub and source.missing and not source.trouble:
        with progress_of(f"fetching the {role}'s header", verbose) as step:
            path = fetch_headers(source, temporary / role, lambda size: step(size / (size + 2**22)))  # the total is unknown
        return NamedFile(path, f"{source.hub}/{path.name}")
    problem = source.problem()
    if problem:
        hint = f"; fetch it with 'speccascade pull {pair.name}', or read only its header with --remote" if source.hub else ""
        raise ModelLoadError(f"{problem}{hint}")
    return NamedFile(source.path, str(source.path))


def _suggest(expert: Path, folders: list[Path], best: int, as_json: bool, verbose: int) -> int:
    """Rank the models in the folders as drafters, and return the exit code. Raises SettingError and ModelLoadError."""
    missing = next((folder for folder in folders if not folder.expanduser().is_dir()), None)
    if missing is not None:
        raise SettingError(f"--folder {missing}: no such folder; name one that holds GGUF files")
    places = {str(folder): folder.expanduser() for folder in folders} or known_places()
    found = models_in(places)
    measured = measured_models()
    with progress_of("comparing", verbose) as step:
        suggestions = suggest(expert.expanduser(), found.models, measured, best, step)
    if as_json:
        print(json.dumps(_as_dict(suggestions, found, places, bool(measured))))
    else:
        show_suggestions(suggestions, found, places, bool(measured))
    return 0 if suggestions.ranked else _NO


def _as_dict(suggestions: Suggestions, found: LocalModels, places: dict[str, Path], measured: bool) -> dict[str, Any]:
    return {
        "places": {name: str(folder) for name, folder in places.items()},
        "measured": measured,
        "ranked": [asdict(each) | {"model": asdict(each.model) | {"path": str(each.model.path)}} for each in suggestions.ranked],
        "untried": [{"name": model.name, "path": str(model.path)} for model in suggestions.untried],
        "others": [{"name": model.name, "path": str(model.path), "reason": reason} for model, reason in suggestions.others],
        "troubles": list(found.troubles),
    }
