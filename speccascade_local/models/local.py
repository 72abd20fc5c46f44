"""The models on this machine: GGUF files in a folder, and where other programs keep theirs.

A model is listed once, by the name under which its owner knows it, however many links lead to it. Files that go with a model and are none
(projectors, adapters, later shards, vocabularies without weights) are left out. A file that cannot be read is reported and stops nothing.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ModelLoadError
from ..common.files import expand_user
from .gguf_layout import layout_of, shard_paths
from .hub_cache import cache_folder

#: ``general.type`` and ``general.architecture`` of files that go with a model and are none.
NO_MODELS = {"adapter", "imatrix", "mmproj", "vocab", "clip", "controlvector"}
TOKENS = "tokenizer.ggml.tokens"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
OLLAMA_SERVICE = Path("/usr/share/ollama/.ollama/models")
_MANIFEST_DEPTH = 4  # host, owner, name, tag
_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"


@dataclass(frozen=True)
class LocalModel:
    """One model on this machine."""

    path: Path  # the file, or the first of its shards
    name: str  # the name under which its owner knows it
    place: str  # where it was found, a key of ``models_in``'s argument
    architecture: str
    tokenizer: str  # the file's name of the kind of its vocabulary
    n_tokens: int  # the number of texts in the vocabulary, 0 if it has none
    size: int  # bytes of all its shards


@dataclass(frozen=True)
class LocalModels:
    """``models``: each once, sorted by name. ``troubles``: a line for each file or folder that could not be read."""

    models: tuple[LocalModel, ...]
    troubles: tuple[str, ...]


def models_in(places: dict[str, Path]) -> LocalModels:
    """Return the models in these folders. The names of ``known_places`` stand for their programs' layouts, others for plain folders."""
    models: dict[str, LocalModel] = {}
    troubles: list[str] = []
    for place, folder in places.items():
        for name, path in _LAYOUTS.get(place, _plain)(folder, troubles):
            real_path = os.path.realpath(path)
            if real_path in models:
                continue
            try:
                model = _describe(path, name, place)
            except ModelLoadError as error:
                troubles.append(str(error))
            except OSError as error:
                troubles.append(_trouble(error))
            else:
                if model is not None:
                    models[real_path] = model
    return LocalModels(tuple(sorted(models.values(), key=lambda model: model.name.lower())), tuple(dict.fromkeys(troubles)))


def known_places() -> dict[str, Path]:
    """Return the folders in which the Hugging Face hub, LM Studio, Ollama and llama.cpp keep models on this machine."""
    places = {HUB: cache_folder(), LM_STUDIO: _lm_studio(), OLLAMA: _ollama(), LLAMA_CPP: _llama_cpp_cache()}
    return {name: folder for name, folder in places.items() if _is_present(folder)}


def _is_present(folder: Path) -> bool:
    """True also for a folder that must not be read: listing it reports that."""
    try:
        os.stat(folder)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _describe(path: Path, name: str, place: str) -> LocalModel | None:
    """Return None for what is not a model. Raises ModelLoadError and OSError."""
    shards = shard_paths(path)
    if path != shards[0]:
        return None
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelLoadError(f"{path}: no plain file")  # opening a pipe would wait
    layout = layout_of(path, until=TOKENS)
    if layout.values.get("general.type") in NO_MODELS or layout.values.get("general.architecture") in NO_MODELS:
        return None
    if not layout.n_tensors and len(shards) == 1:
        return None
    missing = [each for each in shards if not each.exists()]
    if missing:
        raise ModelLoadError(f"{path}: {len(missing)} of its shards are missing, the first is {missing[0].name}; fetch them too")
    return LocalModel(
        path,
        name,
        place,
        architecture=str(layout.values.get("general.architecture", "")),
        tokenizer=str(layout.values.get("tokenizer.ggml.model", "")),
        n_tokens=layout.values.get(TOKENS, 0),
        size=sum(each.stat().st_size for each in shards),
    )


# --------------------------------------------------------------------------- folders by layout

NamedPaths = Iterator[tuple[str, Path]]


def _plain(folder: Path, troubles: list[str]) -> NamedPaths:
    """Yield all GGUF files below a folder, named by their path in it."""
    for path in _files(folder, troubles):
        name = path.relative_to(folder).as_posix()
        if name.lower().endswith(".gguf") and "mmproj" not in path.name.lower():
            yield name, path


def _files(folder: Path, troubles: list[str]) -> Iterator[Path]:
    """Yield all files below a folder in a fixed order, through links too."""
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, onerror=lambda error: troubles.append(_trouble(error)), followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link back would never end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(here, file) for file in sorted(files))


def _hub(folder: Path, troubles: list[str]) -> NamedPaths:
    """Yield ``models--owner--name/snapshots/revision/file`` as owner/name/file, and other files by their path."""
    for name, path in _plain(folder, troubles):
        repository, _, rest = name.partition("/")
        if repository.startswith("models--"):
            _, _, file = rest.removeprefix("snapshots/").partition("/")
            yield f"{repository.removeprefix('models--').replace('--', '/')}/{file}", path
        else:
            yield name, path


def _manifests(folder: Path, troubles: list[str]) -> NamedPaths:
    """Yield the ``blobs/sha256-...`` that Ollama's ``manifests/host/owner/name/tag`` refer to, by the names that Ollama shows."""
    for manifest in _files(folder / "manifests", troubles):
        parts = manifest.relative_to(folder / "manifests").parts
        if len(parts) != _MANIFEST_DEPTH or manifest.name.startswith("."):
            continue
        host, owner, name, tag = parts
        full_name = f"{name}:{tag}"
        if (host, owner) != (_OLLAMA_HOST, _OLLAMA_OWNER):
            full_name = f"{owner}/{full_name}" if host == _OLLAMA_HOST else f"{host}/{owner}/{full_name}"
        try:
            digest = _model_digest(json.loads(manifest.read_text(encoding="utf-8")))
        except OSError as error:
            troubles.append(_trouble(error))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            troubles.append(f"{manifest}: not one of Ollama's manifests ({error}); pull {full_name} again")
        else:
            if digest:
                yield full_name, folder / "blobs" / digest.replace(":", "-")


def _model_digest(manifest: dict[str, list[dict[str, str]]]) -> str | None:
    """Return None for a model that is not a GGUF file. Raises ValueError, TypeError and AttributeError for what is no manifest."""
    digests = [layer.get("digest", "") for layer in manifest.get("layers", []) if layer.get("mediaType") == _OLLAMA_MODEL]
    if digests and not _OLLAMA_DIGEST.fullmatch(digests[0]):
        raise ValueError(f"its digest is {digests[0]!r:.80}")
    return digests[0] if digests else None


def _trouble(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror}); check its name and permissions"


HUB, LM_STUDIO, OLLAMA, LLAMA_CPP = "Hugging Face cache", "LM Studio", "Ollama", "llama.cpp's cache"
_LAYOUTS = {HUB: _hub, OLLAMA: _manifests}

# --------------------------------------------------------------------------- where programs keep them


def _lm_studio() -> Path:
    """Return the folder in LM Studio's settings, or ``models`` in its home: as its pointer says, its present default, its former one."""
    pointer = expand_user("~/.lmstudio-home-pointer")
    homes = [*_lines(pointer)[:1], "~/.lmstudio", "~/.cache/lm-studio"]
    home = next((path for path in map(expand_user, homes) if path.is_dir()), expand_user("~/.lmstudio"))
    try:
        folder = json.loads("\n".join(_lines(home / "settings.json"))).get("downloadsFolder")
    except (ValueError, AttributeError, RecursionError):  # no settings, or in another form
        folder = None
    return expand_user(folder) if isinstance(folder, str) and folder else home / "models"


def _ollama() -> Path:
    """Return the folder in $OLLAMA_MODELS, the user's, or that of the service that its installer sets up on Linux."""
    if value := os.environ.get("OLLAMA_MODELS"):
        return expand_user(value)
    own = expand_user("~/.ollama/models")
    return own if own.is_dir() else OLLAMA_SERVICE


def _llama_cpp_cache() -> Path:
    if value := os.environ.get("LLAMA_CACHE"):
        return expand_user(value)
    if sys.platform == "win32":
        return expand_user(os.environ.get("LOCALAPPDATA", "~/AppData/Local")) / "llama.cpp"
    if sys.platform == "darwin":
        return expand_user("~/Library/Caches/llama.cpp")
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "llama.cpp"


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
