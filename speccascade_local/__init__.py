"""Speculative cascades over two local GGUF models.

    runtime/load.py   files to a loaded pair                    where it begins
    runtime/runtime.py   generate, stream, chat                    what users hold
    runtime/conversation.py   several turns                        both caches kept
    rules/registry.py   every way to let two models answer        by name
    decoding/loop.py   propose, verify, commit, roll back           the loop
    rules/position_rules.py     where the expert is asked                 the dial
    rules/rule.py  what a rule is, and the target it makes   the mathematics
    decoding/verify.py    draft + expert rows -> verdict            the coin
    decoding/draft.py  where drafts come from                    the small model
    llama/session.py   a timeline over weights (llama/model.py)        llama.cpp, and nothing above it

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
