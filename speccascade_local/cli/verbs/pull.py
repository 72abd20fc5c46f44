"""``speccascade pull``: the files of a pair come from the Hugging Face hub, once."""

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
        "--revision",
        metavar="[ROLE=]REVISION",
        show_default="as models.yaml says, else main",
        help="A branch, tag or commit, of all models or of one (drafter, expert); asks the hub again.",
    ),
]


def pull(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="A pair from models.yaml.")],
    revision: Revisions = None,
    models: options.Models = None,
) -> None:
    """Fetch a pair's models from the Hugging Face hub; every other verb then works without a network.

    A download that broke off goes on where it stopped. HF_HOME says where files are kept, HF_TOKEN is the key to gated models,
    HF_ENDPOINT names another hub.
    """
    chosen = catalog.find(pair, models)
    sources, away = _wanted_sources(chosen, revision or [])
    if away:
        _fetch_all(away)
    else:
        _say(f"{pair}: all its files are here already")
    paths = [cached_file(source.hub or "", source.revision, name) for source in sources for name in source.names_on_hub]
    for path in paths:
        write(str(path))
    _tell_what_else(catalog.find(pair, models), paths)


def _fetch_all(sources: list[FileSource]) -> None:
    """All of them, or the rest of what came before; each under a bar in a terminal, and told in a line elsewhere."""
    files = describe_files(sources)
    _tell_other_sizes(sources, files)
    check_space(files)
    logging.getLogger("huggingface_hub").handlers[:] = [_AboveTheBars()]
    bars = _bars()
    try:
        with bars:
            for file in files:
                _fetch_one(file, bars)
    except KeyboardInterrupt:
        _say("what has come is kept; the same command goes on from there")
        raise


def _fetch_one(file: RemoteFile, bars: Progress) -> None:
    if not stderr.is_terminal and file.missing_bytes:
        _say(f"fetching {file.name} of {file.repository}, {decimal(file.missing_bytes)}")
    task = bars.add_task(file.name.rpartition("/")[2], total=file.size, doing="")
    fetch(file, lambda doing, done: bars.update(task, doing=doing, completed=done))
    bars.update(task, doing="done", completed=file.size)


class _AboveTheBars(logging.Handler):
    """What the library has to say, in lines of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        _say(record.getMessage())


def _tell_other_sizes(sources: list[FileSource], files: list[RemoteFile]) -> None:
    for source in sources:
        size = sum(file.size for file in files if file.repository == source.hub and file.name in source.names_on_hub)
        if isinstance(source, ModelSource) and source.size not in (None, size):
            _say(f"{source.file}: {size:,} bytes on the hub, and models.yaml says {source.size:,}; the hub's are fetched")


def _bars() -> Progress:
    """One bar per file, which stay; silent where nobody watches."""
    what, amount = TextColumn("{task.description}", table_column=Column(ratio=1, overflow="ellipsis", no_wrap=True)), DownloadColumn()
    columns = (what, BarColumn(bar_width=12), amount, TransferSpeedColumn(), TextColumn("{task.fields[doing]}"))
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal, expand=True)


def _tell_what_else(pair: Pair, paths: list[Path]) -> None:
    """What the other verbs would still miss, or do otherwise."""
    used = [path for model in pair.models.values() for source in model.sources for path in source.parts]
    for path in paths:
        if path not in used:
            commit = path.relative_to(cache_folder()).parts[2]
            _say(f"{path.name}: other verbs use the revision that models.yaml names, or main; for this one write revision: {commit} there")
    if pair.missing:
        _say(f"still missing: {', '.join(map(str, pair.missing))}")


def _wanted_sources(pair: Pair, revisions: list[str]) -> tuple[list[FileSource], list[FileSource]]:
    """What the pair has on the hub, at the revisions that were asked for; and which of it the hub must be asked for.

    Raises CatalogError and SettingError.
    """
    by_role = {role: [source for source in model.sources if source.hub] for role, model in pair.models.items()}
    if not any(by_role.values()):
        if not pair.missing:
            return [], []
        raise CatalogError(
            f"pair {pair.name!r} names no hub repository to fetch from, and these files of it are not there: "
            f"{', '.join(map(str, pair.missing))}; add hub: owner/name, or mend the paths"
        )
    wrong = next((source.trouble for sources in by_role.values() for source in sources if source.trouble), "")
    if wrong:
        raise CatalogError(f"pair {pair.name!r}: {wrong}")
    named: dict[str, str] = {}
    for text in revisions:
        role, is_one, one = text.partition("=")
        if is_one and role not in by_role:
            raise SettingError(f"--revision {text!r:.60} is of {role!r}, and this pair has {', '.join(by_role)}")
        if not is_revision(one if is_one else text):
            raise SettingError(f"--revision {text!r:.60} is no name of a branch, a tag or a commit")
        named |= {role: one} if is_one else {each: text for each in by_role if each not in named}
    all_of_it: list[FileSource] = []
    away: list[FileSource] = []
    for role, sources in by_role.items():
        may_have_moved = role in named and not is_commit(named[role])
        for source in (_at(source, named.get(role)) for source in sources):
            all_of_it.append(source)
            if may_have_moved or source.missing:
                away.append(source)
    return all_of_it, away


def _say(text: str) -> None:
    stderr.print(text, soft_wrap=True, markup=False)


def _at(source: FileSource, revision: str | None) -> FileSource:
    """The source at another revision."""
    if revision is None or source.hub is None:
        return source
    return replace(source, revision=revision, path=cached_file(source.hub, revision, source.file))
