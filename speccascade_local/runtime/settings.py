"""How one reply is made: what a user may choose, checked once, each default written once.

Knows nothing of models; where a pair has a rule of its own, that is filled in later.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from ..common.errors import SettingError
from ..common.validation import whole_number
from ..decoding.fidelity import LOGPROBS_OF, LogprobsOf, Recording
from ..decoding.lengths import LONGEST_BLOCK
from ..decoding.loop import BONUSES, Bonus
from ..decoding.verify import VERIFICATIONS, Verification
from ..rules import registry
from ..rules.rule import Method
from ..tokens.gbnf import from_gbnf
from ..tokens.json_schema import from_json_schema
from ..tokens.rows import MAX_ROWS
from ..tokens.sampler import Sampler
from ..tokens.shaping import Penalties
from .reply import Chunk

#: Drafted tokens per block: a number, or as many as pay on this machine (see decoding/lengths.py).
BlockSize = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one reply is made: keywords of generate, stream and chat, written here and nowhere else.

    rule None: the pair's own. temperature 0: greedy. top_k: so many of the most probable tokens, 0 for all. top_p: the most probable ones
    up to this mass. min_p: those with at least this share of the most probable one's probability. top_n_sigma: those whose logit lies
    at most so many standard deviations below the largest; 0 for all. block_size: drafted tokens per block, 0 for the expert alone;
    "auto" for as many as pay on this machine, by its profile and by what was kept so far (sequential cascades do not look at it).
    max_tokens: the longest answer. seed None: a fresh one, told in ``Reply.seed``; a seed repeats an answer, so a call that names one
    does not look at what earlier calls have taught about lengths. stop: texts that end the answer, and are not part of it; they may spell
    control tokens. stop_token_ids: ids that do the same. min_tokens: no token ends the answer before it has so many; a stop still does.
    ignore_eos: no token that ends a text or a turn is written at all; ``stop``, ``stop_token_ids`` and ``max_tokens`` still end the
    answer. strict_first: so many first tokens are the expert's whatever the rule says. thinking_rule: the rule between ``<think>`` and
    ``</think>``; None for the same. verification "block": coins over whole blocks, same targets, more kept drafts. bonus "cascade": one
    drafted token more in place of the expert's own after a kept draft, and at least one in every block, so that every token follows the
    rule; with "expert" a place that "auto" leaves without a draft is the expert's own. fidelity: keep the account of every token
    (``Token.tv``, ``Reply.fidelity``); it is kept for logprobs too. logprobs: the log-probability of each token, and so many of the
    most probable ones at its place. logprobs_of: "drawn" for the distribution that the token was drawn from, or "raw" for the softmax of
    the model's logits, without temperature, filters, penalties, bias and grammar: the expert's wherever it was evaluated, else the
    drafter's. model_logprobs: also those of both models' sampling distributions. audit: when the answer is there, the expert reads it and
    judges every token that it was not asked about, so that ``mean_tv`` covers sequential cascades and the drafter alone too; the last
    chunk then waits for it, and ``Stats.audit_s`` says how long.

    Penalties, logit_bias, grammar (GBNF) and json_schema hold for both models, along the draft, and rules judge how sure a model is among
    what these leave. Raises SettingError for a value outside its range.
    """

    rule: str | Method | None = None
    temperature: float = 0.0
    top_k: int = Sampler.top_k
    top_p: float = Sampler.top_p
    min_p: float = Sampler.min_p
    top_n_sigma: float = Sampler.top_n_sigma
    block_size: BlockSize = "auto"
    max_tokens: int = 256
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    strict_first: int = 0
    thinking_rule: str | Method | None = None
    verification: Verification = "token"
    bonus: Bonus = "expert"
    fidelity: bool = True
    logprobs: int | None = None
    logprobs_of: LogprobsOf = "drawn"
    model_logprobs: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | None = None
    json_schema: str | Mapping[str, Any] | bool | None = None
    audit: bool = False

    def __post_init__(self) -> None:
        _ = self.sampler, self.penalties, self.constraint  # validates what they are made of
        if self.block_size != "auto":
            whole_number("block_size", self.block_size, 0, MAX_ROWS - 1, " or 'auto'")
        whole_number("max_tokens", self.max_tokens, 1, 2**31 - 1)
        whole_number("strict_first", self.strict_first, 0, 2**31 - 1)
        self._check_ends()
        if self.seed is not None:
            whole_number("seed", self.seed, 0, 2**63 - 1)
        if self.logprobs is not None:
            whole_number("logprobs", self.logprobs, 0, 2**31 - 1)
        for name, known in (("verification", VERIFICATIONS), ("bonus", BONUSES), ("logprobs_of", LOGPROBS_OF)):
            if getattr(self, name) not in known:
                raise SettingError(f"{name} is {getattr(self, name)!r:.40}; it must be {' or '.join(map(repr, known))}")
        for name in ("fidelity", "model_logprobs", "ignore_eos", "audit"):
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name} is {getattr(self, name)!r:.40}; it must be True or False")
        if self.model_logprobs and self.logprobs is None:
            raise SettingError("model_logprobs adds the two models' log-probabilities to those of logprobs; give logprobs a number too")
        if self.audit and self.wanted is None:
            raise SettingError("audit completes the account of every token, and fidelity=False keeps none; leave one of them out")
        if self.logprobs_of != LOGPROBS_OF[0] and self.logprobs is None:
            raise SettingError(f"logprobs_of {self.logprobs_of!r} says of what logprobs are; give logprobs a number too")
        if self.bonus == "cascade" and self.block_size == 0:
            raise SettingError("bonus 'cascade' settles one drafted token more, and with block_size 0 nothing is drafted; give 1 or more")
        if self.thinking_rule is not None:
            registry.parse(self.thinking_rule)
        if self.rule is not None:
            self.method(self.rule)

    def _check_ends(self) -> None:
        """Raises SettingError for what says where the answer ends."""
        if isinstance(self.stop, (str, bytes)) or not isinstance(self.stop, Iterable):
            raise SettingError(f"stop is {self.stop!r:.40}; it must be a list of texts")
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise SettingError(f"stop is {self.stop!r:.40}; it must be a list of texts, none of them empty")
        if isinstance(self.stop_token_ids, (str, bytes)) or not isinstance(self.stop_token_ids, Iterable):
            raise SettingError(f"stop_token_ids is {self.stop_token_ids!r:.40}; it must be a list of token ids")
        ids = tuple(whole_number("a token id in stop_token_ids", token, 0, 2**31 - 1) for token in self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", ids)
        whole_number("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise SettingError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; an answer cannot have both")
        if (self.min_tokens or self.ignore_eos) and (self.grammar is not None or self.json_schema is not None):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise SettingError(f"{name} forbids the end where a grammar or JSON schema allows nothing else; leave one of them out")

    def method(self, default: str | Method) -> Method:
        """The method that these settings ask for, ``default`` being the pair's own. Raises SettingError if it does not go with them."""
        method = registry.combine(default if self.rule is None else self.rule, self.strict_first, self.thinking_rule)
        method.check(self.sampler, self.longest_block)
        if not method.asks_expert and self.block_size == 0:
            raise SettingError(f"rule {method} with block_size 0 asks neither model; give a block_size of 1 or more")
        for name, usual in (("verification", VERIFICATIONS[0]), ("bonus", BONUSES[0])):
            if not method.in_blocks and getattr(self, name) != usual:
                raise SettingError(f"{name} {getattr(self, name)!r} is about blocks that an expert checks, and {method} has none")
        return method

    @property
    def longest_block(self) -> int:
        """The most tokens that are drafted at once."""
        return LONGEST_BLOCK if self.block_size == "auto" else self.block_size

    @property
    def sampler(self) -> Sampler:
        """The sampling part of the settings."""
        return Sampler(self.temperature, self.top_k, self.top_p, self.min_p, self.top_n_sigma)

    @property
    def penalties(self) -> Penalties:
        """What is added to logits."""
        return Penalties(self.logit_bias, self.presence_penalty, self.frequency_penalty, self.repetition_penalty)

    @property
    def constraint(self) -> str | None:
        """The grammar or schema, as tokens/grammar.py's classes take it."""
        if self.grammar is not None and self.json_schema is not None:
            raise SettingError("a grammar and a JSON schema were given; one text cannot follow both, choose one")
        if self.json_schema is not None:
            return from_json_schema(self.json_schema)
        return None if self.grammar is None else from_gbnf(self.grammar)

    @property
    def wanted(self) -> Recording | None:
        """What is recorded of each token."""
        return Recording(self.logprobs, self.model_logprobs, self.logprobs_of) if self.fidelity or self.logprobs is not None else None


DEFAULTS = Settings()


class Cancel(Protocol):
    """What can be set by another thread: a threading.Event, or anything with its ``is_set``."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Call(Settings):
    """One call: the settings of its reply, and how its caller watches over it.

    cancel: an event; once another thread has set it, no further block is begun, nor another 512 tokens of a prompt read, and the reply
    ends as it is, with the finish_reason ``"cancelled"``. It stays set, so each call needs one of its own, or one that was cleared.
    on_chunk: called with every chunk as soon as it is there, by the thread that makes the reply; an exception in it ends the reply, and is
    the caller's. Raises SettingError for what has no ``is_set``, or cannot be called.
    """

    cancel: Cancel | None = None
    on_chunk: Callable[[Chunk], object] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise SettingError(f"cancel is {self.cancel!r:.40}; it must be an event, such as threading.Event(), or None")
        if self.on_chunk is not None and not callable(self.on_chunk):
            raise SettingError(f"on_chunk is {self.on_chunk!r:.40}; it must be a function that takes a chunk, or None")

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the rest of the reply."""
        return self.cancel is not None and self.cancel.is_set()


_Keywords = ParamSpec("_Keywords")
_Holder = TypeVar("_Holder")
_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


def _taking(
    make: Callable[_Keywords, Call],
) -> Callable[[Callable[[_Holder, _Question, Call], _Answer]], Callable[Concatenate[_Holder, _Question, _Keywords], _Answer]]:
    def decorate(verb: Callable[[_Holder, _Question, Call], _Answer]) -> Callable[Concatenate[_Holder, _Question, _Keywords], _Answer]:
        @wraps(verb)
        def call(self: _Holder, question: _Question, /, *args: _Keywords.args, **chosen: _Keywords.kwargs) -> _Answer:
            return verb(self, question, make(*args, **chosen))

        own = inspect.signature(verb)
        *first, _ = own.parameters.values()
        first = [parameter.replace(kind=parameter.POSITIONAL_ONLY) for parameter in first]
        keywords = inspect.signature(make).parameters.values()
        call.__signature__ = own.replace(parameters=[*first, *keywords])  # type: ignore[attr-defined]  # what help() shows
        return call

    return decorate


#: A verb that is given a Call takes its fields as keywords.
takes_settings = _taking(Call)
