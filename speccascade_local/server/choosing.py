"""What a request chooses: a pair and a rule by the model's name, and the settings of one reply.

``PAIR`` is a loaded pair with its own rule, ``PAIR@RULE`` the same with another. A rule in a request is a name: of a built-in rule, or of
one that was registered when the server started. It is never code, and never a file. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import methods
from ..deferral import Method
from ..errors import SettingError
from ..runtime import Runtime
from ..settings import Settings
from .protocol import ChatRequest, CompletionRequest, Sampled
from .refusals import RefusedError, shown

#: What may be written of a built-in rule. No parenthesis, which code of one's own needs, and no slash.
_BUILT_IN = re.compile(r"[a-z0-9_.:,+-]{1,200}")
#: The one method that reads a file.
_READS_A_FILE = "calibrated"
#: How many candidates of each model are told where only ``model_logprobs`` asks for them.
CANDIDATES = 5
#: OpenAI's own defaults, which are what clients that leave a field out expect.
TEMPERATURE, COMPLETION_TOKENS = 1.0, 16


@dataclass(frozen=True)
class Offer:
    """What is served: pairs by name, and the user's rules by name."""

    pairs: Mapping[str, Runtime]
    rules: Mapping[str, Method]

    def chosen(self, model: str | None) -> tuple[str, Runtime, str | None]:
        """The pair and, where the name has one, the rule. None: the first pair. Raises RefusedError (404), which lists what there is."""
        name, at, rule = (next(iter(self.pairs)) if model is None else model).partition("@")
        if name not in self.pairs or (at and not rule):
            there = ", ".join(self.pairs)
            example = f"{next(iter(self.pairs))}@strict"
            message = f"the model {shown(model)} does not exist here; models are {there}, and each with a rule, such as {example}"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return name, self.pairs[name], rule or None

    def rule(self, spec: str) -> Method:
        """A rule by what a request says. Raises SettingError."""
        if spec in self.rules:
            return self.rules[spec]
        if not _BUILT_IN.fullmatch(spec) or methods.is_custom(spec) or _READS_A_FILE in spec:
            own = f" or one of this server's own, {', '.join(self.rules)}" if self.rules else ""
            raise SettingError(
                f"rule {spec!r:.80} cannot be asked for in a request; name a built-in rule, such as token_v3:0.3 or strict{own} "
                "(rules of one's own are registered when the server starts)"
            )
        return methods.parse(spec)


def settings_of(request: Sampled, runtime: Runtime, offer: Offer, rule: str | None) -> Settings:
    """How the reply to this request is made. rule: what the model's name says. Raises SettingError and RefusedError."""
    given: dict[str, Any] = {
        name: value
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        if (value := getattr(request, name)) is not None
    }
    given["temperature"] = TEMPERATURE if request.temperature is None else request.temperature
    if request.seed is not None:
        given["seed"] = request.seed % 2**63
    if request.stop is not None:
        given["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.logit_bias:
        given["logit_bias"] = _biases(request.logit_bias)
    given |= _of_chat(request, runtime) if isinstance(request, ChatRequest) else _of_completion(request)
    return Settings(**_cascade(request, runtime, offer, rule, given))


def nth(settings: Settings, index: int) -> Settings:
    """For the next of several answers: the same with another seed, if one was named."""
    return replace(settings, seed=(settings.seed + index) % 2**63) if settings.seed is not None and index else settings


def _cascade(request: Sampled, runtime: Runtime, offer: Offer, named: str | None, given: dict[str, Any]) -> dict[str, Any]:
    options = request.cascade
    spec = options.rule if options.rule is not None else named
    if named is not None and options.rule is not None and options.rule != named:
        raise RefusedError(
            400, f"the model's name asks for rule {named!r:.80} and speccascade.rule for {options.rule!r:.80}; name one", param="model"
        )
    if spec == "expert":
        if options.alpha is not None or options.block_size:
            raise RefusedError(400, "rule expert drafts nothing and has no dial; leave out alpha and block_size", param="speccascade")
        return _told(options.model_logprobs, options.fidelity, given) | {"rule": "strict", "block_size": 0}
    method = None if spec is None else offer.rule(spec)
    if options.alpha is not None:
        method = methods.turned(runtime.rule if method is None else method, options.alpha)
    if method is not None:
        given["rule"] = method
    if options.block_size is not None:
        given["block_size"] = options.block_size
    return _told(options.model_logprobs, options.fidelity, given)


def _told(models: bool, fidelity: bool, given: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of each token."""
    given["fidelity"] = fidelity
    if models:
        given |= {"model_logprobs": True, "logprobs": given.get("logprobs") or CANDIDATES}
    return given


def _of_chat(request: ChatRequest, runtime: Runtime) -> dict[str, Any]:
    """max_tokens: where none is named, as many as the context holds."""
    given: dict[str, Any] = {"max_tokens": request.max_completion_tokens or request.max_tokens or runtime.n_ctx}
    if request.logprobs:
        given["logprobs"] = request.top_logprobs or 0
    wanted = request.response_format
    if wanted is not None and wanted.type != "text":
        given["json_schema"] = wanted.json_schema.schema_ if wanted.type == "json_schema" else {"type": "object"}
    return given


def _of_completion(request: Sampled) -> dict[str, Any]:
    assert isinstance(request, CompletionRequest)
    given: dict[str, Any] = {"max_tokens": request.max_tokens or COMPLETION_TOKENS}
    given |= {name: value for name in ("logprobs", "grammar", "json_schema") if (value := getattr(request, name)) is not None}
    return given


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise RefusedError(
            400, 'logit_bias: keys are token ids, such as {"42": -5}; POST /tokenize tells them', param="logit_bias"
        ) from None
