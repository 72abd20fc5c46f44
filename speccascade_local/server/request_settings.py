"""What a request chooses: a pair and a rule by the model's name, and the settings of one reply.

``PAIR`` is a loaded pair with its own rule, ``PAIR@RULE`` the same with another. A rule in a request is a name: of a built-in rule, or of
one that was registered when the server started. It is never code, and never a file. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..common.errors import SettingError
from ..rules import registry
from ..rules.rule import Method
from ..runtime.runtime import Runtime
from ..runtime.settings import Settings
from .errors import RefusedError, shown
from .openai.requests import CascadeOptions, ChatRequest, CompletionRequest, SamplingFields
from .openai.tool_calls import CALL_END

#: What may be written of a built-in rule. No parenthesis, which code of one's own needs, and no slash.
_BUILT_IN = re.compile(r"[a-z0-9_.:,+-]{1,200}")
#: The one method that reads a file.
_READS_A_FILE = "calibrated"
#: How many candidates of each model are told where only ``model_logprobs`` asks for them.
CANDIDATES = 5
#: Fields that runtime/settings.py has under the same name, with the same values.
_AS_THEY_ARE = (
    *("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("stop_token_ids", "min_tokens", "ignore_eos"),
)
#: OpenAI's own defaults, which are what clients that leave a field out expect.
TEMPERATURE, COMPLETION_TOKENS = 1.0, 16


#: A name that a pair may go by besides its own; what stands behind an @ is a rule.
_ALIAS = re.compile(r"[^@\s\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class ServedPairs:
    """What is served: pairs by name, and the user's rules by name.

    aliases: further names, each with the pair's own. any_model: whatever name a request gives, or none, it is answered by the only pair.
    Raises SettingError.
    """

    pairs: Mapping[str, Runtime]
    rules: Mapping[str, Method]
    aliases: Mapping[str, str] = field(default_factory=dict)
    any_model: bool = False

    def __post_init__(self) -> None:
        check_names(list(self.pairs), self.aliases, self.any_model)

    @property
    def names(self) -> list[str]:
        """All that a request may name."""
        return [*self.pairs, *self.aliases]

    def asked(self, model: str | None) -> tuple[str, Runtime, str | None]:
        """As ``chosen``, for a request that must name one. Raises RefusedError."""
        if not model and not self.any_model:
            raise RefusedError(
                400, f"model: this field is required; models are {', '.join(self.names)}", param="model", code="invalid_value"
            )
        return self.chosen(model or None)

    def chosen(self, model: str | None) -> tuple[str, Runtime, str | None]:
        """The pair and, where the name has one, the rule. None: the first pair. Raises RefusedError (404), which lists what there is."""
        first = next(iter(self.pairs))
        name, at, rule = (first if model is None else model).partition("@")
        name = self.aliases.get(name, name)
        if self.any_model and name not in self.pairs:
            name = first
        if name not in self.pairs or (at and not rule):
            there = ", ".join(self.names)
            message = f"the model {shown(model)} does not exist here; models are {there}, and each with a rule, such as {first}@strict"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return name, self.pairs[name], rule or None

    def rule(self, spec: str) -> Method:
        """A rule by what a request says. Raises SettingError."""
        if spec in self.rules:
            return self.rules[spec]
        if not _BUILT_IN.fullmatch(spec) or registry.is_custom(spec) or _READS_A_FILE in spec:
            own = f" or one of this server's own, {', '.join(self.rules)}" if self.rules else ""
            raise SettingError(
                f"rule {spec!r:.80} cannot be asked for in a request; name a built-in rule, such as token_v3:0.3 or strict{own} "
                "(rules of one's own are registered when the server starts)"
            )
        return registry.parse(spec)


def check_names(pairs: Sequence[str], aliases: Mapping[str, str], any_model: bool) -> None:
    """Raises SettingError for names that cannot be served together."""
    if any_model and len(pairs) != 1:
        raise SettingError(f"--any-model answers every name by the only pair, and there are {len(pairs)}: {', '.join(pairs)}; serve one")
    for alias, pair in aliases.items():
        if not _ALIAS.fullmatch(alias):
            raise SettingError(f"--alias {alias!r:.80} cannot be a model's name; it has blanks or an @, or is too long")
        if alias in pairs:
            raise SettingError(f"--alias {alias!r:.80}: a pair has this name; choose another")
        if pair not in pairs:
            raise SettingError(f"--alias {alias!r:.80}: there is no pair {pair!r:.80} here; there are {', '.join(pairs)}")


def settings_of(request: SamplingFields, runtime: Runtime, offer: ServedPairs, rule: str | None) -> Settings:
    """How the reply to this request is made. rule: what the model's name says. Raises SettingError and RefusedError."""
    given = {name: value for name in _AS_THEY_ARE if (value := getattr(request, name)) is not None} | request.constraint
    given["temperature"] = TEMPERATURE if request.temperature is None else request.temperature
    given |= {name: max(0, value) for name in ("top_k", "top_n_sigma") if (value := getattr(request, name)) is not None}
    if request.seed is not None and request.seed >= 0:
        given["seed"] = request.seed
    if request.stop is not None:
        given["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if isinstance(request, ChatRequest) and request.tools and request.parallel_tool_calls is False and request.tool_choice != "none":
        given["stop"] = [*given.get("stop", ()), CALL_END]
    usual = runtime.n_ctx if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    given["max_tokens"] = runtime.n_ctx if request.max_tokens == -1 else request.max_tokens or usual
    if isinstance(request, ChatRequest):
        given |= {"logprobs": request.top_logprobs or 0} if request.logprobs else {}
    elif isinstance(request, CompletionRequest) and request.logprobs is not None:
        given["logprobs"] = request.logprobs
    if "logprobs" in given:
        given["logprobs_of"] = request.cascade.logprobs_of
    return Settings(**_cascade(request, runtime, offer, rule, given))


def nth(settings: Settings, index: int) -> Settings:
    """For the next of several answers: the same with another seed, if one was named."""
    return replace(settings, seed=(settings.seed + index) % 2**63) if settings.seed is not None and index else settings


def _cascade(request: SamplingFields, runtime: Runtime, offer: ServedPairs, named: str | None, given: dict[str, Any]) -> dict[str, Any]:
    options = request.cascade
    spec = options.rule if options.rule is not None else named
    if named is not None and options.rule is not None and options.rule != named:
        raise RefusedError(
            400, f"the model's name asks for rule {named!r:.80} and speccascade.rule for {options.rule!r:.80}; name one", param="model"
        )
    if spec == "expert":
        if options.alpha is not None or options.block_size:
            raise RefusedError(400, "rule expert drafts nothing and has no dial; leave out alpha and block_size", param="speccascade")
        return _recording(options, given) | {"rule": "strict", "block_size": 0}
    method = None if spec is None else offer.rule(spec)
    if options.alpha is not None:
        method = registry.with_dial(runtime.rule if method is None else method, options.alpha)
    if method is not None:
        given["rule"] = method
    if options.block_size is not None:
        given["block_size"] = options.block_size
    return _recording(options, given)


def _recording(options: CascadeOptions, given: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of each token."""
    given |= {"fidelity": options.fidelity, "audit": options.audit}
    if options.model_logprobs:
        given |= {"model_logprobs": True, "logprobs": given.get("logprobs") or CANDIDATES}
    return given
