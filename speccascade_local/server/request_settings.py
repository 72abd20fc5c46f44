"""What a request chooses: a pair and a rule by the model's name, and the settings of one reply.

``PAIR`` is a loaded pair with its own rule, ``PAIR@RULE`` the same pair with another. A request can only name a built-in rule or one that
was registered when the server started, never code or a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..common.errors import SettingError
from ..common.validation import short_repr
from ..rules import registry
from ..rules.rule import Method
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from .errors import RefusedError
from .openai.requests import CascadeOptions, ChatRequest, CompletionRequest, SamplingFields
from .openai.tool_calls import CALL_END

#: A built-in rule as a request may write it: without parentheses, which code needs, and without slashes.
_BUILT_IN = re.compile(r"[a-z0-9_.:,+-]{1,200}")
#: The only rule that reads a file.
_READS_A_FILE = "calibrated"
#: Candidates of each model where only ``model_logprobs`` asks for them.
CANDIDATES = 5
#: Fields that runtime/settings.py has under the same name, with the same values.
_SAME_IN_SETTINGS = (
    *("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("stop_token_ids", "min_tokens", "ignore_eos"),
)
#: OpenAI's defaults, which clients that omit a field expect.
TEMPERATURE, COMPLETION_TOKENS = 1.0, 16
#: Another name of a pair; an @ begins a rule.
_ALIAS = re.compile(r"[^@\s\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class ServedPairs:
    """The pairs and the user's rules, by the names that requests give.

    Raises:
        SettingError: Names that cannot be served together.
    """

    pairs: Mapping[str, Runtime]  # loaded pairs by name
    rules: Mapping[str, Method]  # the user's rules by name
    aliases: Mapping[str, str] = field(default_factory=dict)  # more names, each with the pair's own
    any_model: bool = False  # answer every name, or none, with the only pair

    def __post_init__(self) -> None:
        check_names(list(self.pairs), self.aliases, self.any_model)

    @property
    def names(self) -> list[str]:
        return [*self.pairs, *self.aliases]

    def choose(self, model: str | None, *, required: bool = False) -> tuple[str, Runtime, str | None]:
        """Return the pair's name, the pair, and the rule if the model's name has one; None is the first pair.

        With ``required`` a name is needed unless every name is answered. Raises RefusedError for a missing (400) or unknown name (404).
        """
        names, first = ", ".join(self.names), next(iter(self.pairs))
        if required and not model:
            if not self.any_model:
                raise RefusedError(400, f"model: this field is required; models are {names}", param="model", code="invalid_value")
            model = None
        name, at, rule = (first if model is None else model).partition("@")
        name = self.aliases.get(name, name)
        if self.any_model and name not in self.pairs:
            name = first
        if name not in self.pairs or (at and not rule):
            message = f"unknown model {short_repr(model, 60)}; models are {names}, each also with a rule, such as {first}@strict"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return name, self.pairs[name], rule or None

    def rule(self, spec: str) -> Method:
        """Return the rule that a request names. Raises SettingError."""
        if spec in self.rules:
            return self.rules[spec]
        if not _BUILT_IN.fullmatch(spec) or registry.is_custom(spec) or _READS_A_FILE in spec:
            own = f" or one of this server's own, {', '.join(self.rules)}" if self.rules else ""
            raise SettingError(
                f"a request cannot use rule {spec!r:.80}; name a built-in rule, such as token_v3:0.3 or strict{own} "
                "(register rules of your own when you start the server)"
            )
        return registry.parse(spec)


def check_names(pairs: Sequence[str], aliases: Mapping[str, str], any_model: bool) -> None:
    """Raise SettingError for names that cannot be served together."""
    if any_model and len(pairs) != 1:
        raise SettingError(f"--any-model needs exactly one pair; {len(pairs)} are given: {', '.join(pairs)}; serve one")
    for alias, pair in aliases.items():
        if not _ALIAS.fullmatch(alias):
            raise SettingError(f"--alias {alias!r:.80} cannot be a model's name; use 1 to 200 characters without blanks and @")
        if alias in pairs:
            raise SettingError(f"--alias {alias!r:.80}: a pair has this name; choose another")
        if pair not in pairs:
            raise SettingError(f"--alias {alias!r:.80}: unknown pair {pair!r:.80}; the pairs here are {', '.join(pairs)}")


def settings_of(body: SamplingFields, runtime: Runtime, models: ServedPairs, rule: str | None) -> Settings:
    """Return the settings of the reply to a request, whose model's name has this rule. Raises SettingError and RefusedError."""
    fields = {name: value for name in _SAME_IN_SETTINGS if (value := getattr(body, name)) is not None} | body.constraint
    fields["temperature"] = TEMPERATURE if body.temperature is None else body.temperature
    fields |= {name: max(0, value) for name in ("top_k", "top_n_sigma") if (value := getattr(body, name)) is not None}
    if body.seed is not None and body.seed >= 0:
        fields["seed"] = body.seed
    if body.stop is not None:
        fields["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if isinstance(body, ChatRequest) and body.tools and body.parallel_tool_calls is False and body.tool_choice != "none":
        fields["stop"] = [*fields.get("stop", ()), CALL_END]
    default_tokens = runtime.n_ctx if isinstance(body, ChatRequest) else COMPLETION_TOKENS
    fields["max_tokens"] = runtime.n_ctx if body.max_tokens == -1 else body.max_tokens or default_tokens
    if isinstance(body, ChatRequest):
        fields |= {"logprobs": body.top_logprobs or 0} if body.logprobs else {}
    elif isinstance(body, CompletionRequest) and body.logprobs is not None:
        fields["logprobs"] = body.logprobs
    if "logprobs" in fields:
        fields["logprobs_of"] = body.cascade.logprobs_of
    return Settings(**fields | _rule_fields(body.cascade, runtime, models, rule) | _recording_fields(body.cascade, fields))


def settings_of_choice(settings: Settings, index: int) -> Settings:
    """Return the settings for one of several choices: a named seed grows by the choice's index."""
    return replace(settings, seed=(settings.seed + index) % 2**63) if settings.seed is not None and index else settings


def _rule_fields(options: CascadeOptions, runtime: Runtime, models: ServedPairs, name: str | None) -> dict[str, Any]:
    """Return rule and block size. ``name`` is the rule in the model's name."""
    spec = options.rule if options.rule is not None else name
    if name is not None and spec != name:
        raise RefusedError(
            400, f"the model's name asks for rule {name!r:.80} and speccascade.rule for {options.rule!r:.80}; name one", param="model"
        )
    if spec == "expert":
        if options.alpha is not None or options.block_size:
            raise RefusedError(400, "rule expert drafts nothing and has no dial; leave out alpha and block_size", param="speccascade")
        return {"rule": "strict", "block_size": 0}
    method = None if spec is None else models.rule(spec)
    if options.alpha is not None:
        method = registry.with_dial(runtime.rule if method is None else method, options.alpha)
    return ({} if method is None else {"rule": method}) | ({} if options.block_size is None else {"block_size": options.block_size})


def _recording_fields(options: CascadeOptions, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of each token."""
    candidates = {"model_logprobs": True, "logprobs": fields.get("logprobs") or CANDIDATES} if options.model_logprobs else {}
    return {"fidelity": options.fidelity, "audit": options.audit} | candidates
