"""Two local GGUF models answer as one: speculative cascades with llama.cpp.

    common/    errors, validation, files, child processes      imports nothing of ours
    tokens/    messages to ids, logits to a token, tokens to text
    rules/     when the expert is asked                         the dial
    decoding/  draft, score, settle, commit                     the loop
    models/    which files: models.yaml, this disk, the hub
    llama/     weights, contexts, rollback                      the only room with llama_cpp
    machine/   does it fit, how fast is it, do two models pair
    runtime/   settings in, reply out: load, Runtime, Conversation
    bench/     ask, grade, compare, tune
    server/    OpenAI's protocol, and the page
    cli/       the command line; verbs/ has one file per verb
    programs/  child processes, started by name

Start with :func:`load`, or on the command line with ``speccascade compare``.
"""

from .common.child_process import freeze_support
from .common.errors import (
    CatalogError,
    ContextOverflowError,
    ModelLoadError,
    PairError,
    PromptError,
    SessionError,
    SettingError,
    SpeccascadeError,
)
from .common.version import __version__ as __version__
from .decoding.fidelity import Fidelity
from .decoding.stats import Stats
from .models.placement import Placement
from .rules.evidence import Evidence
from .rules.registry import target_probs
from .rules.rule import Rule, TargetRule
from .runtime.async_runtime import AsyncRuntime
from .runtime.compare import compare
from .runtime.conversation import Conversation
from .runtime.load import load
from .runtime.reply import Candidate, Chunk, Logprobs, Reply, Token
from .runtime.runtime import Runtime
from .runtime.settings import Settings

__all__ = [
    "AsyncRuntime",
    "Candidate",
    "CatalogError",
    "Chunk",
    "ContextOverflowError",
    "Conversation",
    "Evidence",
    "Fidelity",
    "Logprobs",
    "ModelLoadError",
    "PairError",
    "Placement",
    "PromptError",
    "Reply",
    "Rule",
    "Runtime",
    "SessionError",
    "SettingError",
    "Settings",
    "SpeccascadeError",
    "Stats",
    "TargetRule",
    "Token",
    "compare",
    "freeze_support",
    "load",
    "target_probs",
]
