"""The table of request fields that clients of this and of other servers send: what each means, and what becomes of it here.

Requests are read by it (server/openai/translation.py), the page about HTTP shows it, and the tests walk through it. A field that stands nowhere in it is
ignored, because OpenAI's client sends whatever its user adds. Knows nothing of how values are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Route = Literal["chat", "completions"]
ROUTES: tuple[Route, ...] = ("chat", "completions")
#: honoured: under this name. mapped: read as another field. refused: 400, unless it changes nothing. ignored: it never changes an answer.
Ours = Literal["honoured", "mapped", "refused", "ignored"]


@dataclass(frozen=True)
class RequestField:
    """One field of a request.

    servers: who has it. meaning: what it asks for. to: what a mapped one is read as. neutral: values that ask for nothing and pass, as null
    does everywhere. beside: where none of these is given either, a refused one passes too. instead: what a client can do.
    """

    name: str
    ours: Ours
    servers: str
    meaning: str
    to: str = ""
    neutral: tuple[Any, ...] = ()
    beside: tuple[str, ...] = ()
    instead: str = "leave it out"
    routes: tuple[Route, ...] = ROUTES


def _honour(name: str, servers: str, meaning: str, *routes: Route, neutral: tuple[Any, ...] = ()) -> RequestField:
    return RequestField(name, "honoured", servers, meaning, neutral=neutral, routes=routes or ROUTES)


def _map(name: str, servers: str, to: str, meaning: str = "", *, neutral: tuple[Any, ...] = ()) -> RequestField:
    return RequestField(name, "mapped", servers, meaning or f"the same as {to}", to, neutral)


def _refuse(name: str, servers: str, meaning: str, *neutral: Any, **more: Any) -> RequestField:
    return RequestField(name, "refused", servers, meaning, neutral=neutral, **more)


def _ignore(servers: str, meaning: str, *names: str) -> list[RequestField]:
    return [RequestField(name, "ignored", servers, meaning) for name in names]


_ALL = "OpenAI, llama.cpp, vLLM"
_OPENAI = "OpenAI"
_LLAMA = "llama.cpp"
_VLLM = "vLLM"
_OLLAMA = "Ollama"
_KOBOLD = "koboldcpp"
_WEBUI = "text-generation-webui"
_LOCAL = "llama.cpp, vLLM, LM Studio"
_CHAT: dict[str, Any] = {"routes": ("chat",)}
_PENALTIES: dict[str, Any] = {"beside": ("repetition_penalty", "presence_penalty", "frequency_penalty")}
_LOGPROBS: dict[str, Any] = {"instead": "use logprobs"}
_DRAWN: dict[str, Any] = {"beside": ("logprobs",), "instead": "give speccascade.logprobs_of drawn, and read logarithms"}
_CONTEXT: dict[str, Any] = {"instead": "leave it out; the context is what the server was started with"}

FIELDS: tuple[RequestField, ...] = (
    # ------------------------------------------------------------------ what is asked
    _honour("model", _ALL, "the pair, and behind an @ the rule"),
    _honour("messages", _ALL, "the conversation", "chat"),
    _honour("prompt", _ALL, "a text or token ids, also as the only one of a list", "completions"),
    _honour("prompt_cache_key", _OPENAI, "the conversation that this prompt goes on with"),
    _honour("speccascade", "only here", "how both models work together"),
    _honour("continue_final_message", _VLLM, "whether the assistant's last message is continued", "chat"),
    _honour("add_generation_prompt", "llama.cpp, vLLM", "whether a new turn is begun behind the last message", "chat"),
    _refuse("suffix", "OpenAI, vLLM", "a text behind the gap to fill", "", instead="leave it out; a text is only continued here"),
    _refuse("echo", "OpenAI, vLLM", "the prompt in the answer", False),
    _refuse("documents", _VLLM, "documents for the chat template", [], instead="put them into a message", **_CHAT),
    _refuse("chat_template", _VLLM, "another chat template", "", **_CHAT),
    _refuse("chat_template_kwargs", "llama.cpp, vLLM", "variables of the chat template", {}, **_CHAT),
    _refuse("add_special_tokens", _VLLM, "a BOS before a rendered chat", False, **_CHAT),
    _refuse("add_special_tokens", _VLLM, "no BOS before the prompt", True, routes=("completions",)),
    _refuse("truncate_prompt_tokens", _VLLM, "a prompt that is cut", instead="shorten it"),
    _refuse("truncation_length", _WEBUI, "a prompt that is cut", 0, instead="shorten it"),
    _refuse("reasoning_effort", _OPENAI, "how long the model thinks"),
    _refuse("reasoning", "OpenRouter", "how long the model thinks", {}),
    _refuse("think", _OLLAMA, "whether the model thinks"),
    _refuse("reasoning_format", _LLAMA, "thoughts apart from the answer", "none", "auto"),
    _refuse("thinking_budget_tokens", _LLAMA, "how long the model thinks", -1),
    _refuse("verbosity", _OPENAI, "how long the answer is", "medium", instead="use max_tokens, or ask for it in a message"),
    _refuse("prompt_embeds", _VLLM, "embeddings in place of a prompt", []),
    _refuse("image_data", _LLAMA, "pictures", [], instead="leave them out; these models read text"),
    _refuse("images", _OLLAMA, "pictures", [], instead="leave them out; these models read text"),
    _refuse("audio", _OPENAI, "a spoken answer"),
    _refuse("modalities", _OPENAI, "answers that are no text", ["text"]),
    _refuse("system_prompt", _LLAMA, "a system prompt beside the messages", "", instead="use a message of the system"),
    _refuse("system", _OLLAMA, "a system prompt beside the messages", "", instead="use a message of the system"),
    _refuse("template", _OLLAMA, "another chat template", ""),
    _refuse("raw", _OLLAMA, "no chat template", False, instead="use /v1/completions"),
    _refuse("context", _OLLAMA, "the ids of an earlier answer", []),
    _refuse("options", _OLLAMA, "settings in an object of their own", {}, instead="give them beside the other fields"),
    _refuse("mode", _WEBUI, "a character's way to talk", "instruct"),
    _refuse("character", _WEBUI, "a character", ""),
    _refuse("instruction_template", _WEBUI, "another chat template", ""),
    _refuse("num_ctx", _OLLAMA, "another context", **_CONTEXT),
    _refuse("max_context_length", _KOBOLD, "another context", **_CONTEXT),
    _refuse("lora", _LLAMA, "other adapters", [], instead="serve a pair with them, and name it"),
    _refuse("web_search_options", _OPENAI, "a search of the web"),
    _honour("cache_salt", _VLLM, "what was read for this prompt serves only requests with the same one"),
    # ------------------------------------------------------------------ tools
    _honour("tools", _ALL, "functions that may be called", "chat", neutral=([],)),
    _honour("tool_choice", _ALL, "whether they may be called", "chat"),
    _refuse("functions", _OPENAI, "functions in their older form", [], instead="use tools", **_CHAT),
    _refuse("function_call", _OPENAI, "a call in its older form", "none", "auto", instead="use tools", **_CHAT),
    _honour("parallel_tool_calls", _ALL, "false: the answer ends with its first call", "chat"),
    # ------------------------------------------------------------------ how it is sampled
    _honour("temperature", _ALL, "how far tokens are drawn from the most probable ones; 0 is greedy"),
    _honour("top_p", _ALL, "the most probable tokens up to this mass"),
    _honour("top_k", _LOCAL, "the number of most probable tokens that stay; 0 or -1 for all"),
    _honour("min_p", _LOCAL, "tokens with this share of the largest probability"),
    _honour("top_n_sigma", _LLAMA, "tokens within this many standard deviations of the largest logit; 0 or -1 for all"),
    _map("nsigma", _KOBOLD, "top_n_sigma"),
    _honour("seed", _ALL, "repeats an answer; a negative one is no seed"),
    _honour("repetition_penalty", "vLLM, " + _WEBUI, "divides logits of tokens in prompt or answer", neutral=(1,)),
    _map("repeat_penalty", "llama.cpp, Ollama, LM Studio", "repetition_penalty"),
    _map("rep_pen", _KOBOLD, "repetition_penalty"),
    _honour("presence_penalty", _ALL, "lowers tokens that the answer has used", neutral=(0,)),
    _honour("frequency_penalty", _ALL, "lowers tokens by how often the answer has used them", neutral=(0,)),
    _honour("logit_bias", _ALL, "added to logits, by token id; in llama.cpp's list false forbids", neutral=([],)),
    _refuse("repeat_last_n", "llama.cpp, Ollama", "a penalty that looks back only so far", -1, **_PENALTIES),
    _refuse("rep_pen_range", _KOBOLD, "a penalty that looks back only so far", **_PENALTIES),
    _refuse("rep_pen_slope", _KOBOLD, "a penalty that grows with nearness", 0, 1, **_PENALTIES),
    _refuse("repetition_penalty_range", _WEBUI, "a penalty that looks back only so far", 0, **_PENALTIES),
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
    _refuse("min_keep", _LLAMA, "tokens that filters leave at least", 0, 1),
    _refuse("samplers", _LLAMA, "filters in another order", ["penalties", "temperature", "top_n_sigma", "top_k", "top_p", "min_p"]),
    _refuse("sampler_order", _KOBOLD, "filters in another order"),
    _refuse("sampler_priority", _WEBUI, "filters in another order"),
    _refuse("temperature_last", _WEBUI, "filters in another order", False),
    _refuse("do_sample", _WEBUI, "greedy decoding", True, instead="use temperature 0"),
    _refuse("num_beams", _WEBUI, "beam search", 1),
    _refuse("use_beam_search", _VLLM, "beam search", False),
    _refuse("penalty_alpha", _WEBUI, "contrastive search", 0),
    _refuse("no_repeat_ngram_size", _WEBUI, "n-grams that may stand once", 0),
    _refuse("encoder_repetition_penalty", _WEBUI, "a penalty for what is not in the prompt", 1),
    _refuse("guidance_scale", _WEBUI, "guidance by a second prompt", 1),
    _refuse("negative_prompt", _WEBUI, "guidance by a second prompt", ""),
    _refuse("best_of", "OpenAI, vLLM", "the best of several answers", 1, instead="use n"),
    _refuse("allowed_token_ids", _VLLM, "no tokens but these", instead="use logit_bias or grammar"),
    _refuse("bad_words", _VLLM, "words that are never written", [], instead="use logit_bias or grammar"),
    _refuse("banned_tokens", _KOBOLD, "words that are never written", [], instead="use logit_bias or grammar"),
    _refuse("banned_strings", _KOBOLD, "words that are never written", [], instead="use logit_bias or grammar"),
    _refuse("custom_token_bans", _WEBUI, "ids that are never written", "", instead="use logit_bias"),
    _refuse("logits_processors", _VLLM, "code of one's own", []),
    _refuse("vllm_xargs", _VLLM, "arguments of one's own", {}),
    # ------------------------------------------------------------------ what it follows
    _honour("response_format", _ALL, "text, JSON, JSON under a schema, or a grammar"),
    _honour("grammar", _LLAMA, "GBNF that the answer follows", neutral=("",)),
    _honour("json_schema", _LLAMA, "a JSON schema that the answer follows"),
    _map("grammar_string", _WEBUI, "grammar", neutral=("",)),
    _map("guided_grammar", _VLLM, "grammar", neutral=("",)),
    _map("guided_json", _VLLM, "json_schema", "a JSON schema, also as text"),
    _map("guided_choice", _VLLM, "grammar", "texts of which the answer is one", neutral=([],)),
    _map("structured_outputs", _VLLM, "json_schema or grammar", "an object with json, json_object, choice or grammar", neutral=({},)),
    _map("format", _OLLAMA, "json_schema", "json, or a JSON schema", neutral=("",)),
    _refuse("guided_regex", _VLLM, "a regular expression that the answer follows", "", instead="write it as a grammar"),
    _refuse("regex", "SGLang", "a regular expression that the answer follows", "", instead="write it as a grammar"),
    _refuse("guided_whitespace_pattern", _VLLM, "where JSON may have blanks", instead="write it as a grammar"),
    _refuse("grammar_lazy", _LLAMA, "a grammar that begins later", False),
    # ------------------------------------------------------------------ where it ends
    _honour("max_tokens", _ALL, "the longest answer; -1 for as long as the context holds"),
    _map("max_completion_tokens", _OPENAI, "max_tokens"),
    _map("n_predict", _LLAMA, "max_tokens"),
    _map("num_predict", _OLLAMA, "max_tokens"),
    _map("max_new_tokens", _WEBUI, "max_tokens"),
    _map("max_length", _KOBOLD, "max_tokens"),
    _honour("min_tokens", _VLLM, "the least tokens before an end; not beside stop or a grammar"),
    _map("min_length", _KOBOLD, "min_tokens"),
    _honour("stop", _ALL, "texts that end the answer"),
    _map("stop_sequence", _KOBOLD, "stop"),
    _map("stopping_strings", _WEBUI, "stop"),
    _honour("stop_token_ids", _VLLM, "token ids that end the answer"),
    _honour("ignore_eos", "llama.cpp, vLLM", "no end of text is written; not beside a grammar"),
    _map("ban_eos_token", _WEBUI, "ignore_eos"),
    _refuse("include_stop_str_in_output", _VLLM, "the stop text in the answer", False),
    _refuse("skip_special_tokens", _VLLM, "control tokens in the answer", True),
    _refuse("t_max_predict_ms", _LLAMA, "an end after so much time", 0, -1),
    _refuse("max_time", _WEBUI, "an end after so much time", 0),
    _refuse("n_indent", _LLAMA, "lines that are indented so far", 0),
    # ------------------------------------------------------------------ what is told
    _honour("n", _ALL, "how many answers"),
    _map("n_cmpl", _LLAMA, "n"),
    _honour("stream", _ALL, "whether the answer comes block by block"),
    _honour("stream_options", _ALL, "whether a stream ends with its usage"),
    _honour("logprobs", _ALL, "log-probabilities, of the model itself unless speccascade.logprobs_of says drawn", neutral=(False,)),
    _honour("top_logprobs", _ALL, "the number of candidates at each place", "chat"),
    _refuse("n_probs", _LLAMA, "log-probabilities in llama.cpp's form", 0, **_LOGPROBS),
    _refuse("post_sampling_probs", _LLAMA, "probabilities of what was drawn from", False, **_DRAWN),
    _refuse("prompt_logprobs", _VLLM, "log-probabilities of the prompt"),
    _refuse("return_tokens_as_token_ids", _VLLM, "tokens as ids", False),
    _refuse("return_token_ids", _VLLM, "the ids of prompt and answer", False),
    _refuse("return_tokens", _LLAMA, "the ids of the answer", False),
    _refuse("response_fields", _LLAMA, "an answer of other fields", []),
    # ------------------------------------------------------------------ what changes no answer
    *_ignore(_OPENAI, "who asks, and what is kept of it", "user", "safety_identifier", "metadata", "store"),
    *_ignore(_OPENAI, "how soon it is answered", "service_tier", "prediction", "prompt_cache_retention"),
    *_ignore("OpenAI, vLLM", "what else a stream holds", "stream_options.include_obfuscation", "stream_options.continuous_usage_stats"),
    *_ignore(_LLAMA, "where and how it is computed", "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard"),
    *_ignore(_LLAMA, "how drafts are made", "speculative.n_max", "speculative.n_min", "speculative.p_min"),
    *_ignore(_LLAMA, "what else an answer holds", "timings_per_token", "return_progress", "sse_ping_interval"),
    *_ignore(_LLAMA, "how tool calls are found, which happens here always", "parse_tool_calls"),
    *_ignore(_VLLM, "when and how it is computed", "priority", "request_id", "guided_decoding_backend", "mm_processor_kwargs"),
    *_ignore(_VLLM, "blanks between control tokens, which stand for nothing here", "spaces_between_special_tokens"),
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
    """The row of a field; None for one that nobody here knows."""
    return _BY_NAME.get((route, name))
