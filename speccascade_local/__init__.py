"""Speculative cascades over two local GGUF models.

    loading.py   files to a loaded pair                    where it begins
    runtime.py   generate, stream, chat                    what users hold
    conversation.py   several turns                        both caches kept
    methods.py   every way to let two models answer        by name
    cascade.py   propose, verify, commit, rewind           the loop
    rules.py     where the expert is asked                 the dial
    deferral.py  what a rule is, and the target it makes   the mathematics
    verify.py    draft + expert rows -> verdict            the coin
    drafting.py  where drafts come from                    the small model
    session.py   a timeline over weights (model.py)        llama.cpp, and nothing above it

Start with :func:`load`, or on the command line with ``speccascade compare``.
"""

import os

from . import programs

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # before llama.cpp is there, which starts a debugger where it aborts
programs.run_if_asked()  # does not return in a child process of a frozen application

from .account import Fidelity
from .conversation import Conversation
from .deferral import Rule, TargetRule
from .errors import CatalogError, ContextOverflowError, ModelLoadError, PairError, PromptError, SessionError, SettingError, SpeccascadeError
from .evidence import Evidence
from .loading import load
from .methods import target_probs
from .placement import Placement
from .reply import Candidate, Chunk, Logprobs, Reply, Token
from .runtime import Runtime
from .stats import Stats

__version__ = "0.1.0"

__all__ = [
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
    "SpeccascadeError",
    "Stats",
    "TargetRule",
    "Token",
    "load",
    "target_probs",
]
