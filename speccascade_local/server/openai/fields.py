"""The table of request fields that clients of this and other servers send: what each means, and what this server does with it.

It translates requests (server/openai/translation.py), and is printed in docs/http.md. Fields outside the table are ignored, because
OpenAI's client sends everything that its user adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Route = Literal["chat", "completions"]
ROUTES: tuple[Route, ...] = ("chat", "completions")
#: ``honoured``: read under this name. mapped: read as another field. refused: 400, unless it changes nothing. ignored: changes no reply.
Ours = Literal["honoured", "mapped", "refused", "ignored"]


@dataclass(frozen=True)
class RequestField:
    """One field of a request."""

    name: str
    ours: Ours  # what this server does with it
    servers: str  # servers that have it
    meaning: str  # what it asks for
    to: str = ""  # the field that a mapped one is read as
    neutral: tuple[Any, ...] = ()  # values that change nothing and are accepted, as null always is
    beside: tuple[str, ...] = ()  # a refused field is accepted without any of these
    instead: str = "leave it out"  # what a client can do
    routes: tuple[Route, ...] = ROUTES  # routes that have it


def _honour(name: str, servers: str, meaning: str, *routes: Route, neutral: tuple[Any, ...] = ()) -> RequestField:
    return RequestField(name, "honoured", servers, meaning, neutral=neutral, routes=routes or ROUTES)


def _map(name: str, servers: str, to: str, meaning: str = "", *, neutral: tuple[Any, ...] = ()) -> RequestField:
    return RequestField(name, "mapped", servers, meaning or f"the same as {to}", to, neutral)


def _refuse(name: str, servers: str, meaning: str, *neutral: Any, **more: Any) -> RequestField:
    return RequestField(name, "refused", servers, meaning, neutral=neutral, **more)


def _ignore(servers: str, meaning: str, *names: str) -> list[RequestField]:
    return [RequestField(name, "ignored", servers, meaning) for name in names]


_ALL = "OpenAI, llama.cpp, vLLM"
_OPENAI, _LLAMA, _VLLM, _OLLAMA, _KOBOLD, _WEBUI = "OpenAI", "llama.cpp", "vLLM", "Ollama", "koboldcpp", "text-generation-webui"
_LOCAL = "llama.cpp, vLLM, LM Studio"
_CHAT: dict[str, Any] = {"routes": ("chat",)}
_PENALTIES: dict[str, Any] = {"beside": ("repetition_penalty", "presence_penalty", "frequency_penalty")}
_LOGPROBS: dict[str, Any] = {"instead": "use logprobs"}
_DRAWN: dict[str, Any] = {"beside": ("logprobs",), "instead": "use logprobs and speccascade.logprobs_of: drawn"}
_CONTEXT: dict[str, Any] = {"instead": "leave it out; the context is set when the server starts"}

FIELDS: tuple[RequestField, ...] = (
    # ------------------------------------------------------------------ prompt
    _honour("model", _ALL, "the pair, and after an @ the rule"),
    _honour("messages", _ALL, "the conversation", "chat"),
    _honour("prompt", _ALL, "a text or token ids, also as the only item of a list", "completions"),
    _honour("prompt_cache_key", _OPENAI, "the conversation that this prompt continues"),
    _honour("speccascade", "only here", "how both models work together"),
    _honour("continue_final_message", _VLLM, "whether to continue the assistant's last message", "chat"),
    _honour("add_generation_prompt", "llama.cpp, vLLM", "whether to begin a new turn after the last message", "chat"),
    _refuse("suffix", "OpenAI, vLLM", "a text after the gap to fill", "", instead="leave it out; this server only continues texts"),
    _refuse("echo", "OpenAI, vLLM", "the prompt in the reply", False),
    _refuse("documents", _VLLM, "documents for the chat template", [], instead="put them into a message", **_CHAT),
    _refuse("chat_template", _VLLM, "another chat template", "", **_CHAT),
    _refuse("chat_template_kwargs", "llama.cpp, vLLM", "variables of the chat template", {}, **_CHAT),
    _refuse("add_special_tokens", _VLLM, "a BOS before a rendered chat", False, **_CHAT),
    _refuse("add_special_tokens", _VLLM, "no BOS before the prompt", True, routes=("completions",)),
    _refuse("truncate_prompt_tokens", _VLLM, "a truncated prompt", instead="shorten it"),
    _refuse("truncation_length", _WEBUI, "a truncated prompt", 0, instead="shorten it"),
    _refuse("reasoning_effort", _OPENAI, "how long the model thinks"),
    _refuse("reasoning", "OpenRouter", "how long the model thinks", {}),
    _refuse("think", _OLLAMA, "whether the model thinks"),
    _refuse("reasoning_format", _LLAMA, "thoughts apart from the reply", "none", "auto"),
    _refuse("thinking_budget_tokens", _LLAMA, "how long the model thinks", -1),
    _refuse("verbosity", _OPENAI, "how long the reply is", "medium", instead="use max_tokens, or ask for it in a message"),
    _refuse("prompt_embeds", _VLLM, "embeddings in place of a prompt", []),
    _refuse("image_data", _LLAMA, "pictures", [], instead="leave them out; these models read text"),
    _refuse("images", _OLLAMA, "pictures", [], instead="leave them out; these models read text"),
    _refuse("audio", _OPENAI, "an audio reply"),
    _refuse("modalities", _OPENAI, "replies other than text", ["text"]),
    _refuse("system_prompt", _LLAMA, "a system prompt beside the messages", "", instead="use a system message"),
    _refuse("system", _OLLAMA, "a system prompt beside the messages", "", instead="use a system message"),
    _refuse("template", _OLLAMA, "another chat template", ""),
    _refuse("raw", _OLLAMA, "no chat template", False, instead="use /v1/completions"),
    _refuse("context", _OLLAMA, "the ids of an earlier reply", []),
    _refuse("options", _OLLAMA, "settings in a separate object", {}, instead="give them beside the other fields"),
    _refuse("mode", _WEBUI, "a chat mode", "instruct"),
    _refuse("character", _WEBUI, "a character", ""),
    _refuse("instruction_template", _WEBUI, "another chat template", ""),
    _refuse("num_ctx", _OLLAMA, "another context", **_CONTEXT),
    _refuse("max_context_length", _KOBOLD, "another context", **_CONTEXT),
    _refuse("lora", _LLAMA, "other adapters", [], instead="serve a pair with them, and name it"),
    _refuse("web_search_options", _OPENAI, "a web search"),
    _honour("cache_salt", _VLLM, "requests share KV caches only with the same salt"),
    # ------------------------------------------------------------------ tools
    _honour("tools", _ALL, "functions that may be called", "chat", neutral=([],)),
    _honour("tool_choice", _ALL, "whether they may be called", "chat"),
    _refuse("functions", _OPENAI, "functions in the older form", [], instead="use tools", **_CHAT),
    _refuse("function_call", _OPENAI, "a call in the older form", "none", "auto", instead="use tools", **_CHAT),
    _honour("parallel_tool_calls", _ALL, "false: the reply ends with its first call", "chat"),
    # ------------------------------------------------------------------ sampling
    _honour("temperature", _ALL, "sampling temperature; 0 is greedy"),
    _honour("top_p", _ALL, "keep the most probable tokens up to this mass"),
    _honour("top_k", _LOCAL, "keep this many of the most probable tokens; 0 or -1 for all"),
    _honour("min_p", _LOCAL, "keep tokens with this share of the largest probability"),
    _honour("top_n_sigma", _LLAMA, "keep tokens within this many standard deviations of the largest logit; 0 or -1 for all"),
    _map("nsigma", _KOBOLD, "top_n_sigma"),
    _honour("seed", _ALL, "repeats a reply; a negative number is no seed"),
    _honour("repetition_penalty", "vLLM, " + _WEBUI, "divides logits of tokens in prompt or reply", neutral=(1,)),
    _map("repeat_penalty", "llama.cpp, Ollama, LM Studio", "repetition_penalty"),
    _map("rep_pen", _KOBOLD, "repetition_penalty"),
    _honour("presence_penalty", _ALL, "lowers logits of tokens in the reply", neutral=(0,)),
    _honour("frequency_penalty", _ALL, "lowers logits of tokens by their count in the reply", neutral=(0,)),
    _honour("logit_bias", _ALL, "added to logits, by token id; false in llama.cpp's list forbids a token", neutral=([],)),
    _refuse("repeat_last_n", "llama.cpp, Ollama", "a penalty over a limited range", -1, **_PENALTIES),
    _refuse("rep_pen_range", _KOBOLD, "a penalty over a limited range", **_PENALTIES),
    _refuse("rep_pen_slope", _KOBOLD, "a penalty that grows with proximity", 0, 1, **_PENALTIES),
    _refuse("repetition_penalty_range", _WEBUI, "a penalty over a limited range", 0, **_PENALTIES),
    _refuse("penalize_nl", "llama.cpp, Ollama", "no penalty for line ends", True, **_PENALTIES),
    _refuse("typical_p", _LLAMA, "locally typical sampling", 1),
    _refuse("typical", _KOBOLD, "locally typical sampling", 1),
    _refuse("tfs_z", "llama.cpp, Ollama", "tail-free sampling", 1),
    _refuse("tfs", _KOBOLD, "tail-free sampling", 1),
    _refuse("top_a", _KOBOLD, "top-a sampling", 0),
    _refuse("mirostat", "llama.cpp, Ollama", "Mirostat", 0),
    _refuse("mirostat_mode", _WEBUI, "Mirostat", 0),
    _refuse("dry_multiplier", _LLAMA, "the DRY penalty", 0),
    _refuse("xtc_probability", _LLAMA, "XTC sampling", 0),
    _refuse("dynatemp_range", _LLAMA, "a temperature that varies", 0),
    _refuse("dynamic_temperature", _WEBUI, "a temperature that varies", False),
    _refuse("smoothing_factor", f"{_KOBOLD}, {_WEBUI}", "quadratic sampling", 0),
    _refuse("epsilon_cutoff", _WEBUI, "a cut-off by probability", 0, instead="use min_p"),
    _refuse("eta_cutoff", _WEBUI, "a cut-off by entropy", 0, instead="use min_p"),
    _refuse("min_keep", _LLAMA, "tokens that filters always leave", 0, 1),
    _refuse("samplers", _LLAMA, "filters in another order", ["penalties", "temperature", "top_n_sigma", "top_k", "top_p", "min_p"]),
    _refuse("sampler_order", _KOBOLD, "filters in another order"),
    _refuse("sampler_priority", _WEBUI, "filters in another order"),
    _refuse("temperature_last", _WEBUI, "filters in another order", False),
    _refuse("do_sample", _WEBUI, "greedy decoding", True, instead="use temperature 0"),
    _refuse("num_beams", _WEBUI, "beam search", 1),
    _refuse("use_beam_search", _VLLM, "beam search", False),
    _refuse("penalty_alpha", _WEBUI, "contrastive search", 0),
    _refuse("no_repeat_ngram_size", _WEBUI, "n-grams that may occur only once", 0),
    _refuse("encoder_repetition_penalty", _WEBUI, "a penalty for tokens outside the prompt", 1),
    _refuse("guidance_scale", _WEBUI, "guidance by a second prompt", 1),
    _refuse("negative_prompt", _WEBUI, "guidance by a second prompt", ""),
    _refuse("best_of", "OpenAI, vLLM", "the best of several replies", 1, instead="use n"),
    _refuse("allowed_token_ids", _VLLM, "only these tokens", instead="use logit_bias or grammar"),
    _refuse("bad_words", _VLLM, "forbidden words", [], instead="use logit_bias or grammar"),
    _refuse("banned_tokens", _KOBOLD, "forbidden words", [], instead="use logit_bias or grammar"),
    _refuse("banned_strings", _KOBOLD, "forbidden words", [], instead="use logit_bias or grammar"),
    _refuse("custom_token_bans", _WEBUI, "forbidden token ids", "", instead="use logit_bias"),
    _refuse("logits_processors", _VLLM, "custom code", []),
    _refuse("vllm_xargs", _VLLM, "custom arguments", {}),
    # ------------------------------------------------------------------ constraints
    _honour("response_format", _ALL, "text, JSON, JSON under a schema, or a grammar"),
    _honour("grammar", _LLAMA, "GBNF that the reply follows", neutral=("",)),
    _honour("json_schema", _LLAMA, "a JSON schema that the reply follows"),
    _map("grammar_string", _WEBUI, "grammar", neutral=("",)),
    _map("guided_grammar", _VLLM, "grammar", neutral=("",)),
    _map("guided_json", _VLLM, "json_schema", "a JSON schema, also as text"),
    _map("guided_choice", _VLLM, "grammar", "texts to choose the reply from", neutral=([],)),
    _map("structured_outputs", _VLLM, "json_schema or grammar", "an object with json, json_object, choice or grammar", neutral=({},)),
    _map("format", _OLLAMA, "json_schema", "json, or a JSON schema", neutral=("",)),
    _refuse("guided_regex", _VLLM, "a regular expression that the reply follows", "", instead="write it as a grammar"),
    _refuse("regex", "SGLang", "a regular expression that the reply follows", "", instead="write it as a grammar"),
    _refuse("guided_whitespace_pattern", _VLLM, "where JSON may have blanks", instead="write it as a grammar"),
    _refuse("grammar_lazy", _LLAMA, "a grammar that begins later", False),
    # ------------------------------------------------------------------ end
    _honour("max_tokens", _ALL, "maximum length of the reply; -1 for as many tokens as the context holds"),
    _map("max_completion_tokens", _OPENAI, "max_tokens"),
    _map("n_predict", _LLAMA, "max_tokens"),
    _map("num_predict", _OLLAMA, "max_tokens"),
    _map("max_new_tokens", _WEBUI, "max_tokens"),
    _map("max_length", _KOBOLD, "max_tokens"),
    _honour("min_tokens", _VLLM, "minimum tokens before the end; not beside stop or a grammar"),
    _map("min_length", _KOBOLD, "min_tokens"),
    _honour("stop", _ALL, "texts that end the reply"),
    _map("stop_sequence", _KOBOLD, "stop"),
    _map("stopping_strings", _WEBUI, "stop"),
    _honour("stop_token_ids", _VLLM, "token ids that end the reply"),
    _honour("ignore_eos", "llama.cpp, vLLM", "forbids the end of text; not beside a grammar"),
    _map("ban_eos_token", _WEBUI, "ignore_eos"),
    _refuse("include_stop_str_in_output", _VLLM, "the stop text in the reply", False),
    _refuse("skip_special_tokens", _VLLM, "control tokens in the reply", True),
    _refuse("t_max_predict_ms", _LLAMA, "a time limit", 0, -1),
    _refuse("max_time", _WEBUI, "a time limit", 0),
    _refuse("n_indent", _LLAMA, "indented lines", 0),
    # ------------------------------------------------------------------ output
    _honour("n", _ALL, "number of choices"),
    _map("n_cmpl", _LLAMA, "n"),
    _honour("stream", _ALL, "whether to send the reply block by block"),
    _honour("stream_options", _ALL, "whether a stream ends with its usage"),
    _honour("logprobs", _ALL, "log-probabilities, of the model itself unless speccascade.logprobs_of says drawn", neutral=(False,)),
    _honour("top_logprobs", _ALL, "number of candidates per token", "chat"),
    _refuse("n_probs", _LLAMA, "log-probabilities in llama.cpp's form", 0, **_LOGPROBS),
    _refuse("post_sampling_probs", _LLAMA, "probabilities of the sampled distribution", False, **_DRAWN),
    _refuse("prompt_logprobs", _VLLM, "log-probabilities of the prompt"),
    _refuse("return_tokens_as_token_ids", _VLLM, "tokens as ids", False),
    _refuse("return_token_ids", _VLLM, "the ids of prompt and reply", False),
    _refuse("return_tokens", _LLAMA, "the ids of the reply", False),
    _refuse("response_fields", _LLAMA, "a reply of other fields", []),
    # ------------------------------------------------------------------ fields that change no reply
    *_ignore(_OPENAI, "who asks, and what is stored", "user", "safety_identifier", "metadata", "store"),
    *_ignore(_OPENAI, "how soon the reply comes", "service_tier", "prediction", "prompt_cache_retention"),
    *_ignore("OpenAI, vLLM", "additional data in a stream", "stream_options.include_obfuscation", "stream_options.continuous_usage_stats"),
    *_ignore(_LLAMA, "where and how it is computed", "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard"),
    *_ignore(_LLAMA, "how drafts are made", "speculative.n_max", "speculative.n_min", "speculative.p_min"),
    *_ignore(_LLAMA, "additional data in a reply", "timings_per_token", "return_progress", "sse_ping_interval"),
    *_ignore(_LLAMA, "whether to find tool calls; this server always does", "parse_tool_calls"),
    *_ignore(_VLLM, "when and how it is computed", "priority", "request_id", "guided_decoding_backend", "mm_processor_kwargs"),
    *_ignore(_VLLM, "blanks between control tokens", "spaces_between_special_tokens"),
    *_ignore(_VLLM, "a part of beam search, which is refused", "length_penalty", "early_stopping"),
    *_ignore("Ollama, LM Studio", "how long a model stays loaded, and which one drafts", "keep_alive", "ttl", "draft_model"),
    *_ignore("llama.cpp, Ollama", "a part of Mirostat, which is refused", "mirostat_tau", "mirostat_eta"),
    *_ignore(_LLAMA, "a part of DRY, which is refused", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *_ignore(_LLAMA, "a part of XTC, which is refused", "xtc_threshold"),
    *_ignore(_LLAMA, "a part of a varying temperature, which is refused", "dynatemp_exponent", "dynatemp_low", "dynatemp_high"),
    *_ignore(_KOBOLD, "a part of quadratic sampling, which is refused", "smoothing_curve"),
)
_BY_NAME = {(route, each.name): each for each in FIELDS for route in each.routes}


def field_of(route: Route, name: str) -> RequestField | None:
    """Return the row of a field, or None for an unknown one."""
    return _BY_NAME.get((route, name))
