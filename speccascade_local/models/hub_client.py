"""The optional library ``huggingface_hub``, and its errors in one line that says what to do. No message contains a token."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..common.errors import FetchError
from ..common.pip import install_extra

_OLDEST, _TOO_NEW = (1, 20), (3, 0)  # as in pyproject.toml


def hub() -> Any:
    """Return the library with the parts that are used here. Raises FetchError."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it would report to the hub what else is installed, and ask it for more
    try:
        library = importlib.import_module("huggingface_hub")
        for part in ("constants", "errors", "file_download", "utils"):
            importlib.import_module(f"huggingface_hub.{part}")
    except ImportError as error:
        raise FetchError(
            f"fetching needs the library huggingface_hub, which is not installed here ({error}); install it: {install_extra('hub')}"
        ) from None
    version = str(library.__version__)
    if not _OLDEST <= tuple(map(int, version.split(".")[:2])) < _TOO_NEW:
        raise FetchError(
            f"huggingface_hub {version} is installed, and at least 1.20 and less than 3 is needed; install it: {install_extra('hub')}"
        )
    return library


def explain(error: BaseException, repository: str, revision: str, file: str = "") -> str:
    """Return what went wrong with a repository, or a file of it, and what to do."""
    errors, endpoint = hub().errors, hub().constants.ENDPOINT
    what = f"{file} of {repository}" if file else repository
    page = f"{endpoint}/{repository}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in _chain(error)):
        return f"{what}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it first"
    if isinstance(error, errors.GatedRepoError):
        advice = "accept them with the account of your token" if _has_token() else "accept them, make a token and set HF_TOKEN"
        return f"{what}: the hub gives this repository only to those who accepted its terms ({status}); see {page}, {advice}, and try again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r} (404); see {page}/tree/main for what there is"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repository}: no such repository on {endpoint} ({status}), or a private one; check its name, {_token_hint()}"
    if status in (401, 403):
        return f"{what}: the hub refuses it ({status}); see {page}, and {_token_hint()}"
    if status == 404:
        return f"{what}: not found on {endpoint} (404) at revision {revision}; check the name"
    if status is not None:
        return f"{what}: the hub answered {status}; try again later"
    return f"{what}: no connection to {endpoint} ({_without_token(error)}); check the network (HF_ENDPOINT names another hub)"


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all errors that led to it."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def _has_token() -> bool:
    return bool(hub().utils.get_token())


def _token_hint() -> str:
    return "or whether your token may read it" if _has_token() else "or set HF_TOKEN to a token that may read it"


def _without_token(error: BaseException) -> str:
    """Return the error's own words, short."""
    text = " ".join(str(error).split()) or type(error).__name__
    for token in {str(hub().utils.get_token() or ""), os.environ.get("HF_TOKEN", "").strip()} - {""}:
        text = text.replace(token, "***")
    return text[:200]
