"""Everything that can go wrong on purpose, as one tree.

    SpeccascadeError                 catch this to catch them all
    ├── SettingError                 a rule, alpha, temperature, length or other setting outside what is allowed
    ├── PromptError                  an empty prompt, ids outside the vocabulary, text for a model that has none, a bad chat message
    │   └── ContextOverflowError     more tokens than the context holds
    ├── CatalogError                 a file of ours (models.yaml, a calibration, tasks): missing, malformed, unknown pair or key
    ├── FetchError                   the hub, the network or the disk stood in the way of a file
    ├── ModelLoadError               a file that is missing, no GGUF, damaged, or of a kind that cannot work here
    ├── PairError                    two models that cannot answer as one
    ├── SessionError                 llama.cpp refused an evaluation or a rollback; a closed or superseded object was used
    │   └── UnwantedError            work was given up half-way, because whoever asked has cancelled it
    └── EngineError                  a server that cannot answer now: it is closing
        ├── EngineBusyError          as many requests wait as may
        └── EngineTimeoutError       an answer took longer than it was given

Every message says what is wrong, the value that was seen, what is allowed and what to do next.
"""

from __future__ import annotations


class SpeccascadeError(Exception):
    """Base of all errors that this package raises on purpose."""


class SettingError(SpeccascadeError):
    """A setting outside its range, or of the wrong type."""


class PromptError(SpeccascadeError):
    """A prompt that cannot be evaluated."""


class ContextOverflowError(PromptError):
    """More tokens than the context holds."""


class CatalogError(SpeccascadeError):
    """``models.yaml``, or another file of this package's own kinds, cannot be found, read or understood, or has no such pair."""


class FetchError(SpeccascadeError):
    """A file cannot be fetched from the hub, or came otherwise than the hub describes it."""


class ModelLoadError(SpeccascadeError):
    """A model file cannot be used."""


class PairError(SpeccascadeError):
    """Two models whose vocabularies do not match."""


class SessionError(SpeccascadeError):
    """llama.cpp refused a step, or a closed or superseded object was used."""


class UnwantedError(SessionError):
    """Work was given up half-way, such as the reading of a long text, because whoever asked has cancelled it."""


class EngineError(SpeccascadeError):
    """A server cannot answer this request, for no fault of the request's."""


class EngineBusyError(EngineError):
    """As many requests wait as may. retry_after_s: whole seconds after which there may be room."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineTimeoutError(EngineError):
    """An answer took longer than it was given, waiting included."""
