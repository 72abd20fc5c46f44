"""Settings: how one reply is made. Each default stands here and nowhere else, and each value is checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

from ..common.errors import SettingError
from ..common.lazy import LazyProperty
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

#: Drafted tokens per block: a number, or as many as pay on this machine (see decoding/auto_length.py).
BlockSize = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one reply is made: what generate, stream and chat take, as an object or as keywords.

    Penalties, logit_bias, grammar and json_schema hold for both models, along the draft. Rules judge how sure a model is among what these
    leave. Raises SettingError for a value outside its range, or for two that exclude each other.

    Attributes:
        rule: a rule, or its name; None for the pair's own.
        temperature: 0 is greedy.
        top_k: keep this many of the most probable tokens; 0 for all.
        top_p: keep the most probable tokens up to this mass.
        min_p: keep tokens with at least this share of the most probable one's probability.
        top_n_sigma: keep tokens whose logit lies at most this many standard deviations below the largest; 0 for all.
        block_size: drafted tokens per block. 0: the expert alone. "auto": as many as pay on this machine, by its profile and by what was
            kept so far. Sequential cascades do not use it.
        max_tokens: the longest answer.
        seed: repeats an answer, so a call that names one ignores what earlier calls taught about lengths. None: a fresh seed, which
            ``Reply.seed`` reports.
        stop: texts that end the answer and are not part of it; they may spell control tokens.
        stop_token_ids: ids that end the answer.
        min_tokens: no token ends the answer before it has this many; a stop still does.
        ignore_eos: never write a token that ends a text or a turn.
        strict_first: this many first tokens are the expert's whatever the rule says.
        thinking_rule: the rule between ``<think>`` and ``</think>``; None for the same rule.
        verification: "token" tosses a coin for each token, "block" over whole blocks: the same distribution, and more kept drafts.
        bonus: "expert" adds the expert's own token to a kept draft, and a place that "auto" leaves without a draft is the expert's own.
            "cascade" drafts one token more instead, and at least one in every block, so that every token follows the rule.
        fidelity: record every token's fidelity (``Token.tv``, ``Reply.fidelity``); with logprobs it is recorded anyway.
        logprobs: report the log-probability of each token, and this many of the most probable ones at its place.
        logprobs_of: "drawn": of the distribution that the token was drawn from. "raw": of the softmax of the model's logits, without
            temperature, filters, penalties, bias and grammar; the expert's wherever it was evaluated, else the drafter's.
        model_logprobs: report those of both models' sampling distributions too.
        presence_penalty: subtracted from the logits of tokens that the text holds.
        frequency_penalty: subtracted once for each time that the reply holds the token.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that the text holds; 1 for none.
        logit_bias: added to logits, by token id.
        grammar: GBNF that the answer follows.
        json_schema: a JSON schema that the answer follows: text, mapping or bool.
        audit: let the expert read the finished answer and judge every token that it was not asked about, so that ``mean_tv`` covers
            sequential cascades and the drafter alone. The last chunk waits for it; ``Stats.audit_s`` reports how long.
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
        _ = self.sampler, self.penalties, self.constraint  # each checks what it is made of
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
            raise SettingError("model_logprobs adds both models' log-probabilities to those of logprobs; set logprobs to a number too")
        if self.audit and self.recording is None:
            raise SettingError("audit completes the fidelity of every token, and fidelity=False records none; omit one of them")
        if self.logprobs_of != LOGPROBS_OF[0] and self.logprobs is None:
            raise SettingError(f"logprobs_of {self.logprobs_of!r} says what logprobs are of; set logprobs to a number too")
        if self.bonus == "cascade" and self.block_size == 0:
            raise SettingError("bonus 'cascade' settles one more drafted token, and block_size 0 drafts none; use block_size 1 or more")
        _ = self._own_method

    def _check_ends(self) -> None:
        """Check the settings that say where the answer ends. Raises SettingError."""
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
            raise SettingError(f"{name} forbids the end where a grammar or JSON schema allows nothing else; omit one of them")

    def method(self, default: str | Method) -> Method:
        """Return the method of these settings, where ``default`` is the pair's own. Raises SettingError if the two do not fit."""
        return self._own_method or self._fit(default)

    @LazyProperty
    def _own_method(self) -> Method | None:
        """The rule that these settings name, parsed once."""
        if self.rule is not None:
            return self._fit(self.rule)
        if self.thinking_rule is not None:
            registry.parse(self.thinking_rule)
        return None

    def _fit(self, rule: str | Method) -> Method:
        method = registry.combine(rule, self.strict_first, self.thinking_rule)
        method.check(self.sampler, self.longest_block)
        if not method.asks_expert and self.block_size == 0:
            raise SettingError(f"rule {method} with block_size 0 asks neither model; use a block_size of 1 or more")
        for name, usual in (("verification", VERIFICATIONS[0]), ("bonus", BONUSES[0])):
            if not method.in_blocks and getattr(self, name) != usual:
                raise SettingError(f"{name} {getattr(self, name)!r} is about blocks that an expert checks, and {method} has none")
        return method

    @property
    def longest_block(self) -> int:
        """The most tokens of a draft."""
        return LONGEST_BLOCK if self.block_size == "auto" else self.block_size

    @property
    def sampler(self) -> Sampler:
        """Temperature and filters."""
        return Sampler(self.temperature, self.top_k, self.top_p, self.min_p, self.top_n_sigma)

    @property
    def penalties(self) -> Penalties:
        """Penalties and biases of logits."""
        return Penalties(self.logit_bias, self.presence_penalty, self.frequency_penalty, self.repetition_penalty)

    @LazyProperty
    def constraint(self) -> str | None:
        """The grammar or schema in llguidance's form, translated once."""
        if self.grammar is not None and self.json_schema is not None:
            raise SettingError("a grammar and a JSON schema were given; a text follows one of them; omit the other")
        if self.json_schema is not None:
            return from_json_schema(self.json_schema)
        return None if self.grammar is None else from_gbnf(self.grammar)

    @property
    def recording(self) -> Recording | None:
        """What to record of each token."""
        return Recording(self.logprobs, self.model_logprobs, self.logprobs_of) if self.fidelity or self.logprobs is not None else None

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


DEFAULTS = Settings()


def settings_with(settings: Settings | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings, or the defaults, with ``overrides`` in place of their fields. Raises TypeError and SettingError."""
    unknown = overrides.keys() - {each.name for each in fields(Settings)}
    if unknown:
        raise TypeError(f"unknown setting {min(unknown)!r:.40}; the settings are {', '.join(each.name for each in fields(Settings))}")
    return replace(settings or DEFAULTS, **overrides) if overrides else settings or DEFAULTS


class Cancel(Protocol):
    """What another thread can set: a threading.Event, or any object with its ``is_set``."""

    def is_set(self) -> bool: ...


#: Called with every chunk of a reply; see :class:`Watch`.
OnChunk = Callable[[Chunk], object] | None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How the caller of one reply watches over it. Raises SettingError where ``cancel`` or ``on_chunk`` is of another kind.

    Raises:
        SettingError: ``cancel`` has no ``is_set``, or ``on_chunk`` cannot be called.
    """

    # an event. Once it is set no further block begins, nor the next 512 tokens of a prompt; the reply ends with the finish_reason
    # ``"cancelled"``. It stays set, so each call needs its own, or one that was cleared.
    cancel: Cancel | None = None
    # called with every chunk as soon as it exists, by the thread that makes the reply. An exception in it ends the reply and reaches the
    # caller.
    on_chunk: OnChunk = None

    def __post_init__(self) -> None:
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise SettingError(f"cancel is {self.cancel!r:.40}; it must be an event, such as threading.Event(), or None")
        if self.on_chunk is not None and not callable(self.on_chunk):
            raise SettingError(f"on_chunk is {self.on_chunk!r:.40}; it must be a function that takes a chunk, or None")

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller no longer wants the rest of the reply."""
        return self.cancel is not None and self.cancel.is_set()
