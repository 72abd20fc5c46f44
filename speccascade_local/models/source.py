"""Finds the files of one model that ``models.yaml`` names.

A model is a path, a glob that matches one model, the first of several shards, ``bundled:NAME``, or a file of a repository on the Hugging
Face hub. LoRA adapters and a placement on the machine may go with it. Nothing is fetched.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ..common.files import PACKAGE, expand_user
from .gguf_layout import shard_names, shard_paths
from .hub_cache import REVISION, cached_file, is_file
from .placement import CacheType

#: In place of a drafter's file: no second model, drafts are copied from the text.
NGRAM = "ngram"
BUNDLED = "bundled:"
_MAGIC = re.compile(r"[*?\[]")

Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
Revision = Annotated[str, Field(pattern=REVISION)]
Name = Annotated[str, Field(min_length=1)]


class FileEntry(BaseModel):
    """A file in ``models.yaml``: its name, or a mapping."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: Name = Field(description="A path (from this file's folder), a glob, bundled:NAME, or the file's name in the hub's repository.")
    hub: Repository | None = Field(None, description="The repository on the Hugging Face hub, owner/name; 'speccascade pull' fetches it.")
    revision: Revision | None = Field(None, description="A branch, tag or commit of that repository; without it the main branch.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("this is empty; name a file")
        if not isinstance(value, (str, dict)):
            raise ValueError("this must be a file's name, or a mapping with the key file")
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one_place(self) -> FileEntry:
        if self.revision and not self.hub:
            raise ValueError("a revision is one of a repository, and no hub is named; add hub: owner/name")
        if self.hub and (_MAGIC.search(self.file) or "\\" in self.file or ".." in self.file.split("/") or self.file.startswith("/")):
            raise ValueError("with hub, file is the exact name of a file in the repository; no glob, and no path that leaves it")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(schema)]}


class AdapterEntry(FileEntry):
    """A LoRA adapter in ``models.yaml``."""

    scale: float = Field(1.0, allow_inf_nan=False, description="How strongly it is applied; 1 is as it was trained.")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class ModelEntry(FileEntry):
    """A model in ``models.yaml``."""

    size: Annotated[int, Field(gt=0)] | None = Field(None, description="Bytes of the file, or of all its shards, as its source says.")
    licence: Name | None = Field(None, description="As the repository's card names it.")
    lora: Annotated[list[AdapterEntry], BeforeValidator(_as_list, json_schema_input_type=AdapterEntry | list[AdapterEntry])] = Field(
        [], description="Adapters to apply: one, or a list."
    )
    gpu_layers: Annotated[int, Field(ge=-1)] | Literal["auto"] | None = Field(None, description="Layers on the GPU; -1: all.")
    device: Name | None = Field(None, description="The device it runs on, as 'speccascade doctor' names it.")
    cache_type: CacheType | None = Field(None, description="How the cache's values are stored.")


@dataclass(frozen=True)
class FileSource:
    """A file, and how it was named.

    Attributes:
        path: Its path, or that of the first shard, whether it is there or not.
        file: The name in ``models.yaml``.
        revision: The branch, tag or commit of the repository on the hub.
        trouble: Why the name stands for no single file; "" if it does.
    """

    path: Path
    file: str = ""
    hub: str | None = None
    revision: str | None = None
    trouble: str = ""

    @property
    def parts(self) -> list[Path]:
        """The file, or all its shards."""
        return shard_paths(self.path)

    @property
    def missing(self) -> list[Path]:
        """The parts that are not on this machine."""
        return [path for path in self.parts if not is_file(path)]

    @property
    def names_on_hub(self) -> list[str]:
        """The names in the repository of all its parts."""
        return shard_names(self.file)

    def problem(self) -> str:
        """Return why it cannot be used, and what to do; "" if it can, or if it is a plain path without a file."""
        missing = self.missing
        if self.trouble or not missing:
            return self.trouble
        if self.hub:
            part = f"{len(missing)} of {len(self.parts)} shards of " if len(self.parts) > 1 else ""
            return f"{part}{self.file} of {self.hub} {'are' if len(missing) > 1 else 'is'} not on this machine"
        if len(missing) < len(self.parts):
            n_present = len(self.parts) - len(missing)
            return f"{self.path}: {n_present} of {len(self.parts)} shards are there; missing: {_several(path.name for path in missing)}"
        return ""


@dataclass(frozen=True)
class ModelSource(FileSource):
    """A model, and what ``models.yaml`` says about it (see :class:`ModelEntry`); None for what it does not say."""

    size: int | None = None
    licence: str | None = None
    adapters: tuple[tuple[FileSource, float], ...] = ()
    gpu_layers: int | Literal["auto"] | None = None
    device: str | None = None
    cache_type: CacheType | None = None

    @property
    def lora(self) -> tuple[tuple[Path, float], ...]:
        """The adapters' files and scales."""
        return tuple((adapter.path, scale) for adapter, scale in self.adapters)

    @property
    def sources(self) -> list[FileSource]:
        """The model and its adapters."""
        return [self, *(adapter for adapter, _ in self.adapters)]


def model_source(entry: ModelEntry, folder: Path) -> ModelSource:
    """Return the model that an entry stands for; relative paths start at ``folder``."""
    adapters = tuple((FileSource(**_find(each, folder)), each.scale) for each in entry.lora)
    fields = {name: getattr(entry, name) for name in ("size", "licence", "gpu_layers", "device", "cache_type")}
    return ModelSource(**_find(entry, folder), adapters=adapters, **fields)


def resolve_path(text: str, folder: Path) -> Path:
    """Return the path of a name in ``models.yaml``, which may be ``bundled:NAME`` or begin with ``~``."""
    if text.startswith(BUNDLED):
        return PACKAGE / "demo" / text.removeprefix(BUNDLED)
    return folder / expand_user(text)


def _find(entry: FileEntry, folder: Path) -> dict[str, Any]:
    """Return the fields of a FileSource."""
    if entry.hub:
        path, trouble = cached_file(entry.hub, entry.revision, entry.file), _shard_trouble(entry.file)
    elif entry.file == NGRAM:
        path, trouble = Path(NGRAM), ""
    else:
        path, trouble = _match(resolve_path(entry.file, folder))
    return {"path": path, "file": entry.file, "hub": entry.hub, "revision": entry.revision, "trouble": trouble}


def _match(path: Path) -> tuple[Path, str]:
    """Return the model that a path or glob stands for, and what is wrong, if anything."""
    if is_file(path) or not _MAGIC.search(str(path)):
        return path, _shard_trouble(path.name)
    matches = sorted(Path(match) for match in _glob(str(path)) if is_file(Path(match)))
    models = sorted({shard_paths(match)[0] for match in matches})
    if len(models) == 1:
        return models[0], ""
    if not models:
        return path, f"{path}: no file matches; check the pattern and its folder"
    return path, f"{path}: {len(models)} models match, and one is needed: {_several(match.name for match in models)}; write it more exactly"


def _glob(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern)
    except (OSError, ValueError):  # a name that no file can have
        return []


def _several(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shard_trouble(name: str) -> str:
    first = shard_names(name)[0]
    return "" if name == first else f"{name}: one of several shards, but not the first; name {first}"
