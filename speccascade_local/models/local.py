"""Which models lie on this machine: GGUF files in a folder, and where other programs keep theirs.

A model is found once, however many names it has, and by the name under which its owner knows it. What is no model of its own (a
projector for pictures, an adapter, a later part of a file, a vocabulary without weights) is left out; what cannot be read is told and
stops nothing. Knows nothing of pairs.
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
from .gguf_layout import layout_of, shard_paths
from .hub_cache import cache_folder

_PART = re.compile(r"-(?P<number>\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
#: What ``general.type`` and ``general.architecture`` are of files that go with a model and are none.
NO_MODELS = {"adapter", "imatrix", "mmproj", "vocab", "clip", "controlvector"}
TOKENS = "tokenizer.ggml.tokens"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
OLLAMA_SERVICE = Path("/usr/share/ollama/.ollama/models")
_MANIFEST_DEPTH = 4  # host, owner, name, tag
_OLLAMA_HOST, _OLLAMA_OWNER = "registry.ollama.ai", "library"


@dataclass(frozen=True)
class LocalModel:
    """One file, or the first part of several. name: as its owner knows it. place: where it was found. tokenizer: the file's word for the
    kind of its vocabulary. n_tokens: how many texts that has, 0 where there are none. size: bytes of all its files.
    """

    path: Path
    name: str
    place: str
    architecture: str
    tokenizer: str
    n_tokens: int
    size: int


@dataclass(frozen=True)
class LocalModels:
    """models: each once, by name. troubles: a line for each file or folder that could not be read."""

    models: tuple[LocalModel, ...]
    troubles: tuple[str, ...]


def models_in(places: dict[str, Path]) -> LocalModels:
    """The models in these folders. The names of the places tell how each is laid out: those of ``known_places``, else a plain folder."""
    models: dict[str, LocalModel] = {}
    troubles: list[str] = []
    for place, folder in places.items():
        listed = _LAYOUTS.get(place, _plain)
        for name, path in listed(folder, troubles):
            true_path = os.path.realpath(path)
            if true_path in models:
                continue
            try:
                model = _describe(path, name, place)
            except ModelLoadError as error:
                troubles.append(str(error))
                continue
            except OSError as error:
                troubles.append(_trouble(error))
                continue
            if model is not None:
                models[true_path] = model
    return LocalModels(tuple(sorted(models.values(), key=lambda model: model.name.lower())), tuple(dict.fromkeys(troubles)))


def known_places() -> dict[str, Path]:
    """Where the Hugging Face hub, LM Studio, Ollama and llama.cpp keep models on this machine, as far as there are such folders."""
    places = {HUB: cache_folder(), LM_STUDIO: _lm_studio(), OLLAMA: _ollama(), LLAMA_CPP: _llama_cpp_cache()}
    return {name: folder for name, folder in places.items() if _is_there(folder)}


def _is_there(folder: Path) -> bool:
    """Also one that may not be looked into, which is then told."""
    try:
        os.stat(folder)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _describe(path: Path, name: str, place: str) -> LocalModel | None:
    """None for what is no model of its own. Raises ModelLoadError and OSError."""
    part = _PART.search(name)
    if part and int(part["number"]) > 1:
        return None
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelLoadError(f"{path}: no plain file")  # a pipe would be waited for
    layout = layout_of(path, until=TOKENS)
    if layout.values.get("general.type") in NO_MODELS or layout.values.get("general.architecture") in NO_MODELS:
        return None
    if not layout.n_tensors and not part:
        return None
    missing = [each for each in shard_paths(path) if not each.exists()]
    if missing:
        raise ModelLoadError(f"{path}: {len(missing)} of its parts are missing, the first is {missing[0].name}; fetch them too")
    return LocalModel(
        path,
        name,
        place,
        architecture=str(layout.values.get("general.architecture", "")),
        tokenizer=str(layout.values.get("tokenizer.ggml.model", "")),
        n_tokens=layout.values.get(TOKENS, 0),
        size=sum(each.stat().st_size for each in shard_paths(path)),
    )


# --------------------------------------------------------------------------- folders by layout

Named = Iterator[tuple[str, Path]]


def _plain(folder: Path, troubles: list[str]) -> Named:
    """All GGUF files below a folder, by their path in it."""
    for path in _files(folder, troubles):
        name = path.relative_to(folder).as_posix()
        if name.lower().endswith(".gguf") and "mmproj" not in path.name.lower():
            yield name, path


def _files(folder: Path, troubles: list[str]) -> Iterator[Path]:
    """All files below a folder, in a fixed order, behind links too."""
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, onerror=lambda error: troubles.append(_trouble(error)), followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back would never end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(here, file) for file in sorted(files))


def _hub(folder: Path, troubles: list[str]) -> Named:
    """``models--owner--name/snapshots/revision/file``, by owner, name and file; what else lies there, by its path."""
    for name, path in _plain(folder, troubles):
        repository, _, rest = name.partition("/")
        if repository.startswith("models--"):
            _, _, file = rest.removeprefix("snapshots/").partition("/")
            yield f"{repository.removeprefix('models--').replace('--', '/')}/{file}", path
        else:
            yield name, path


def _manifests(folder: Path, troubles: list[str]) -> Named:
    """Ollama's ``manifests/host/owner/name/tag``, each of which names its model's ``blobs/sha256-...``, by the names that Ollama shows."""
    for manifest in _files(folder / "manifests", troubles):
        parts = manifest.relative_to(folder / "manifests").parts
        if len(parts) != _MANIFEST_DEPTH or manifest.name.startswith("."):
            continue
        host, owner, name, tag = parts
        shown = f"{name}:{tag}"
        if (host, owner) != (_OLLAMA_HOST, _OLLAMA_OWNER):
            shown = f"{owner}/{shown}" if host == _OLLAMA_HOST else f"{host}/{owner}/{shown}"
        try:
            digest = _model_digest(json.loads(manifest.read_text(encoding="utf-8")))
        except OSError as error:
            troubles.append(_trouble(error))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            troubles.append(f"{manifest}: not one of Ollama's manifests ({error}); pull {shown} again")
        else:
            if digest:
                yield shown, folder / "blobs" / digest.replace(":", "-")


def _model_digest(manifest: dict[str, list[dict[str, str]]]) -> str | None:
    """None where the model is not kept as a GGUF file. Raises ValueError, TypeError and AttributeError for what is no manifest."""
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
    """The folder of its settings, else ``models`` in its home: what its pointer says, its present default, its former one."""
    pointer = _user_path("~/.lmstudio-home-pointer")
    homes = [*_lines(pointer)[:1], "~/.lmstudio", "~/.cache/lm-studio"]
    home = next((path for path in map(_user_path, homes) if path.is_dir()), _user_path("~/.lmstudio"))
    try:
        chosen = json.loads("\n".join(_lines(home / "settings.json"))).get("downloadsFolder")
    except (ValueError, AttributeError, RecursionError):  # none, or not what it was when this was written
        chosen = None
    return _user_path(chosen) if isinstance(chosen, str) and chosen else home / "models"


def _ollama() -> Path:
    """Its variable's, the user's, or that of the service which its installer makes on Linux."""
    if value := os.environ.get("OLLAMA_MODELS"):
        return _user_path(value)
    own = _user_path("~/.ollama/models")
    return own if own.is_dir() else OLLAMA_SERVICE


def _llama_cpp_cache() -> Path:
    if value := os.environ.get("LLAMA_CACHE"):
        return _user_path(value)
    if sys.platform == "win32":
        return _user_path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")) / "llama.cpp"
    if sys.platform == "darwin":
        return _user_path("~/Library/Caches/llama.cpp")
    return _user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "llama.cpp"


def _user_path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _lines(path: Path) -> list[str]:
    """Of a text file that may not be there."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
