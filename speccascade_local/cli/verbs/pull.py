"""``speccascade pull``: fetch the files of a pair from the Hugging Face hub."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column

from ...common.errors import CatalogError, SettingError
from ...models import catalog
from ...models.catalog import Pair
from ...models.hub_cache import cache_folder, cached_file, is_commit, is_revision
from ...models.hub_download import RemoteFile, check_space, describe_files, fetch
from ...models.source import FileSource, ModelSource
from .. import options
from ..terminal import stderr, write

Revisions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[ROLE=]REVISION",
        show_default="that of models.yaml, else main",
        help="Branch, tag or commit of all models, or of one (drafter, expert); checks the hub again.",
    ),
]


def run(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="A pair from models.yaml.")],
    revision: Revisions = None,
    models: options.Models = None,
) -> None:
    """Fetch a pair's models from the Hugging Face hub; every other verb then works without a network.

    An interrupted download resumes where it stopped. HF_HOME names the folder for files, HF_TOKEN is the key to gated models, HF_ENDPOINT
    names another hub.
    """
    sources, to_fetch = _sources(catalog.find(pair, models), revision or [])
    if to_fetch:
        _fetch_all(to_fetch)
    else:
        _print_line(f"{pair}: all files are here already")
    paths = [cached_file(source.hub or "", source.revision, name) for source in sources for name in source.names_on_hub]
    for path in paths:
        write(str(path))
    _warn_of_the_rest(catalog.find(pair, models), paths)


def _fetch_all(sources: list[FileSource]) -> None:
    """Fetch the files, or the rest of them, each under a bar in a terminal and with a line elsewhere."""
    files = describe_files(sources)
    _warn_of_other_sizes(sources, files)
    check_space(files)
    logging.getLogger("huggingface_hub").handlers[:] = [_AboveTheBars()]
    bars = _bars()
    try:
        with bars:
            for file in files:
                _fetch_one(file, bars)
    except KeyboardInterrupt:
        _print_line("interrupted; the same command resumes the download")
        raise


def _fetch_one(file: RemoteFile, bars: Progress) -> None:
    if not stderr.is_terminal and file.missing_bytes:
        _print_line(f"fetching {file.name} of {file.repository}, {decimal(file.missing_bytes)}")
    task = bars.add_task(file.name.rpartition("/")[2], total=file.size, doing="")
    fetch(file, lambda doing, done: bars.update(task, doing=doing, completed=done))
    bars.update(task, doing="done", completed=file.size)


class _AboveTheBars(logging.Handler):
    """A handler that prints the library's messages as lines above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        _print_line(record.getMessage())


def _warn_of_other_sizes(sources: list[FileSource], files: list[RemoteFile]) -> None:
    for source in sources:
        size = sum(file.size for file in files if file.repository == source.hub and file.name in source.names_on_hub)
        if isinstance(source, ModelSource) and source.size not in (None, size):
            _print_line(f"{source.file}: {size:,} bytes on the hub, but {source.size:,} in models.yaml; fetching the hub's")


def _bars() -> Progress:
    """Return a bar for each file, which stays; off in a pipe."""
    what, amount = TextColumn("{task.description}", table_column=Column(ratio=1, overflow="ellipsis", no_wrap=True)), DownloadColumn()
    columns = (what, BarColumn(bar_width=12), amount, TransferSpeedColumn(), TextColumn("{task.fields[doing]}"))
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal, expand=True)


def _warn_of_the_rest(pair: Pair, paths: list[Path]) -> None:
    """Print which of the paths the other verbs do not use, and which files they still miss."""
    used = [path for model in pair.models.values() for source in model.sources for path in source.parts]
    for path in paths:
        if path not in used:
            commit = path.relative_to(cache_folder()).parts[2]
            _print_line(f"{path.name}: other verbs use the revision in models.yaml, or main; to use this one, add revision: {commit} there")
    if pair.missing:
        _print_line(f"still missing: {', '.join(map(str, pair.missing))}")


def _sources(pair: Pair, revisions: list[str]) -> tuple[list[FileSource], list[FileSource]]:
    """Return the pair's sources on the hub at these revisions, and those to fetch. Raises CatalogError and SettingError."""
    by_role = {role: [source for source in model.sources if source.hub] for role, model in pair.models.items()}
    if not any(by_role.values()):
        if not pair.missing:
            return [], []
        raise CatalogError(
            f"pair {pair.name!r} names no hub repository to fetch from, and these files are missing: "
            f"{', '.join(map(str, pair.missing))}; add hub: owner/name, or fix the paths"
        )
    trouble = next((source.trouble for sources in by_role.values() for source in sources if source.trouble), "")
    if trouble:
        raise CatalogError(f"pair {pair.name!r}: {trouble}")
    chosen = _revisions(revisions, list(by_role))
    every: list[FileSource] = []
    to_fetch: list[FileSource] = []
    for role, sources in by_role.items():
        may_have_moved = role in chosen and not is_commit(chosen[role])
        here = [_at_revision(source, chosen.get(role)) for source in sources]
        every += here
        to_fetch += [source for source in here if may_have_moved or source.missing]
    return every, to_fetch


def _revisions(texts: list[str], roles: list[str]) -> dict[str, str]:
    """Return the revision of each role that ``[ROLE=]REVISION`` names. Raises SettingError."""
    chosen: dict[str, str] = {}
    for text in texts:
        role, equals, revision = text.partition("=") if "=" in text else ("", "", text)
        if equals and role not in roles:
            raise SettingError(f"--revision {text!r:.60} names the role {role!r}; this pair has {', '.join(roles)}")
        if not is_revision(revision):
            raise SettingError(f"--revision {text!r:.60} does not name a branch, tag or commit")
        chosen |= {role: revision} if equals else {each: text for each in roles if each not in chosen}
    return chosen


def _print_line(text: str) -> None:
    stderr.print(text, soft_wrap=True, markup=False)


def _at_revision(source: FileSource, revision: str | None) -> FileSource:
    """Return the source at another revision."""
    if revision is None or source.hub is None:
        return source
    return replace(source, revision=revision, path=cached_file(source.hub, revision, source.file))
