"""Speculative cascades over two local GGUF models.

    runtime.py   load a pair, generate, stream, chat       what users hold
    cascade.py   propose, verify, commit, rewind           the loop
    rules.py     where the expert is asked                 the dial
    verify.py    draft + expert rows -> verdict            the mathematics
    drafting.py  where drafts come from                    the small model
    session.py   weights and a timeline over them          llama.cpp, and nothing above it

Start with :func:`load`, or on the command line with ``speccascade compare``.
"""

from .errors import CatalogError, ContextOverflowError, ModelLoadError, PairError, PromptError, SessionError, SettingError, SpeccascadeError
from .reply import Chunk, Reply, Token
from .rules import Rule
from .runtime import Runtime, load
from .stats import Stats
from .verify import target_probs

__version__ = "0.1.0"

__all__ = [
    "CatalogError",
    "Chunk",
    "ContextOverflowError",
    "ModelLoadError",
    "PairError",
    "PromptError",
    "Reply",
    "Rule",
    "Runtime",
    "SessionError",
    "SettingError",
    "SpeccascadeError",
    "Stats",
    "Token",
    "load",
    "target_probs",
]
