"""All errors that this package raises on purpose, as one tree.

    SpeccascadeError                 catch this to catch them all
    ├── SettingError                 a rule, alpha, temperature, length or other setting outside what is allowed
    ├── PromptError                  an empty prompt, ids outside the vocabulary, text for a model without a tokenizer, a bad chat message
    │   └── ContextOverflowError     more tokens than the context holds
    ├── CatalogError                 a file of ours (models.yaml, a calibration, tasks): missing, malformed, unknown pair or key
    ├── FetchError                   a file cannot be fetched: the hub, the network or the disk
    ├── ModelLoadError               a file that is missing, not GGUF, damaged, or of a kind that cannot work here
    ├── PairError                    two models that cannot answer as one
    ├── SessionError                 llama.cpp refused an evaluation or a rollback; a closed or superseded object was used
    │   └── UnwantedError            work was stopped half-way, because the request was cancelled
    └── EngineError                  a server that cannot answer now: it is closing
        ├── EngineBusyError          the queue of requests is full
        └── EngineTimeoutError       a reply took longer than its limit

Every message says what is wrong, the value, what is allowed and what to do next.
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
    """``models.yaml``, or another file of this package's own kinds, cannot be found, read or understood, or lacks the pair."""


class FetchError(SpeccascadeError):
    """A file cannot be fetched from the hub, or differs from what the hub describes."""


class ModelLoadError(SpeccascadeError):
    """A model file cannot be used."""


class PairError(SpeccascadeError):
    """Two models whose vocabularies do not match."""


class SessionError(SpeccascadeError):
    """llama.cpp refused a step, or a closed or superseded object was used."""


class UnwantedError(SessionError):
    """Work was stopped half-way, such as reading a long text, because the request was cancelled."""


class EngineError(SpeccascadeError):
    """A server cannot answer this request, which is not the request's fault."""


class EngineBusyError(EngineError):
    """The queue of requests is full; after ``retry_after_s`` whole seconds there may be room."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineTimeoutError(EngineError):
    """A reply took longer than its limit, waiting included."""
