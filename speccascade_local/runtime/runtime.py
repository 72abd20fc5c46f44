"""The object that users hold: two loaded models that answer as one.

It carries both caches from call to call, and lets calls take turns (turns.py). answer.py makes each reply.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cached_property
from types import TracebackType
from typing import Any, NoReturn, cast

from ..common.errors import PromptError, SessionError, UnwantedError
from ..decoding.history import AcceptanceHistory
from ..decoding.ngram import NgramSession
from ..decoding.profile import Profile
from ..decoding.stats import Stats
from ..llama.backend import in_own_process
from ..llama.model import LlamaModel
from ..llama.session import LlamaSession, SavedState
from ..machine.profile_cache import apply_profile, profile_of, read_histories
from ..models.catalog import Pair
from ..rules.routes import Route
from ..rules.rule import Method
from ..tokens.chat_template import ChatTemplate, Message
from ..tokens.prompt import Prompt, prompt_ids
from ..tokens.transcript import Transcript
from ..tokens.vocabulary import Vocabulary
from .answer import LoadedPair, answer
from .reply import Chunk, Reply
from .settings import Cancel, OnChunk, Settings, Watch, settings_with
from .shared_pair import SharedPair
from .turns import Turns

Messages = Sequence[Message]
#: A text, its ids, or the messages of a chat.
Question = Prompt | Messages


class Runtime:
    """A loaded pair, made by :func:`load`. Use it as a context manager, or close it.

    A runtime answers one call at a time. Calls from several threads wait for one another, and the next call ends a stream that was not
    read to its end. After Ctrl-C, or a stream that is dropped half-way, the runtime stays usable. The next call that begins with the same
    tokens uses what both caches hold. A runtime belongs to its process: in a fork every call raises SessionError.

    Attributes:
        pair: the pair, and where its files are.
        rule: the rule of calls that name none.
        n_ctx: tokens that the contexts hold.
        n_vocab: number of ids that both models have.
        has_chat_template: whether :meth:`chat` works for this pair.
    """

    def __init__(
        self,
        pair: Pair,
        rule: Method,
        drafter: LlamaSession | NgramSession,
        expert: LlamaSession,
        resources: ExitStack,
        learnt: Mapping[str, AcceptanceHistory] | None = None,
    ) -> None:
        self.pair = pair
        self.rule = rule
        self.n_ctx = expert.n_ctx
        self.n_vocab = expert.n_vocab
        self._drafter, self._expert, self._model = drafter, expert, expert.model
        self._tokenizer = self._model.tokenizer
        self.has_chat_template = self._tokenizer.has_text and bool(self._model.chat_template)
        vocabulary = Vocabulary(self.n_vocab, lambda token: self._tokenizer.piece(token, special=True))
        self._loaded = LoadedPair(drafter, expert, self._tokenizer, vocabulary, start=dict(learnt or {}))
        self._resources = resources
        self._turns = Turns()

    def generate(
        self, prompt: Prompt, settings: Settings | None = None, *, cancel: Cancel | None = None, on_chunk: OnChunk = None, **overrides: Any
    ) -> Reply:
        """Continue a raw prompt and return the whole reply.

        Args:
            prompt: a text, in which control tokens are read, or a list of ids.
            settings: how the reply is made; None for the defaults.
            cancel: an event that ends the reply, see :class:`~speccascade_local.runtime.settings.Watch`.
            on_chunk: called with each chunk, see the same.
            overrides: fields of :class:`~speccascade_local.Settings`, in place of those of ``settings``.

        Raises:
            PromptError, ContextOverflowError, SettingError: bad input, before anything is evaluated; SettingError also where a rule of
                the user's own, or a grammar, fails later.
            TypeError: an unknown setting.
            SessionError: the runtime is closed, in use by an engine, or called by a rule that it is asking.
        """
        return self._reply(prompt, settings_with(settings, overrides), Watch(cancel=cancel, on_chunk=on_chunk))

    def stream(
        self, prompt: Prompt, settings: Settings | None = None, *, cancel: Cancel | None = None, on_chunk: OnChunk = None, **overrides: Any
    ) -> Iterator[Chunk]:
        """Yield the reply of :meth:`generate` block by block. The call itself refuses bad input, not the first chunk."""
        return self._start(prompt, settings_with(settings, overrides), Watch(cancel=cancel, on_chunk=on_chunk))

    def chat(
        self,
        messages: Sequence[Message],
        settings: Settings | None = None,
        *,
        cancel: Cancel | None = None,
        on_chunk: OnChunk = None,
        **overrides: Any,
    ) -> Reply:
        """Answer a conversation, ``[{"role": "user", "content": "Hi"}, ...]``, through the expert's chat template.

        Where the last message is the assistant's, the reply continues it: see :meth:`chat_ids`. Everything else is as in :meth:`generate`.
        """
        made_of = settings_with(settings, overrides), Watch(cancel=cancel, on_chunk=on_chunk)
        return self._reply(self.chat_ids(messages), *made_of)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a raw prompt, as :meth:`generate` takes it. Raises PromptError and ContextOverflowError."""
        with self._turns.exclusive():
            return self._ids(prompt)

    def method(self, settings: Settings) -> Method:
        """Return the method of these settings, the pair's own rule where they name none. Raises SettingError."""
        method = settings.method(self.rule)
        if isinstance(method, Route):
            method.check_pair(self.pair.drafter, self.pair.expert)
        return method

    def chat_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = (), *, continues: bool = True) -> list[int]:
        """Return the prompt that the expert's chat template makes of a conversation, and of functions that may be called.

        A control token that a message only spells stays plain text. With ``continues``, where the last message is the assistant's, the
        prompt ends with its content as the template writes it, for the model to continue. Without it that message is complete, and another
        begins. Raises PromptError when the expert has no template, or one that cannot leave an answer unfinished.
        """
        with self._turns.exclusive():
            return Transcript().prompt(self._template.render(messages, tools, continues=continues), self._tokenizer).ids

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for functions that may be called. Raises PromptError where there is no template."""
        return self._template.takes_tools

    def chat_prompt(self, messages: Messages, said: Transcript = Transcript()) -> Transcript:  # noqa: B008  # a frozen value
        """Return the prompt of a conversation that continues: what was ``said`` keeps its ids where the prompt begins with it."""
        with self._turns.exclusive():
            return said.prompt(self._template.render(messages), self._tokenizer)

    def transcript_of(self, question: Question, said: Transcript = Transcript()) -> Transcript:  # noqa: B008  # a frozen value
        """Return the ids of a prompt, or of messages as :meth:`chat_prompt` makes them. Raises PromptError and ContextOverflowError."""
        if not isinstance(question, str) and question and isinstance(question[0], Mapping):
            prompt = self.chat_prompt(cast(Messages, question), said)
            self.prompt_ids(prompt.ids)  # refuses too many
            return prompt
        return Transcript().answered(self.prompt_ids(cast(Prompt, question)))

    def saved_caches(self) -> dict[str, SavedState]:
        """Return what both models' caches hold, by role. Raises SessionError."""
        with self._turns.exclusive():
            self._turns.require_unshared()
            return {role: session.save_state() for role, session in self._sessions.items()}

    def restore_cache(self, role: str, kept: SavedState) -> None:
        """Fill one model's cache. Raises SessionError where llama.cpp refuses it; that cache is then empty."""
        with self._turns.exclusive():
            self._turns.begin()
            self._sessions[role].restore_state(kept)

    def reset(self) -> None:
        """Empty both caches, so that the next call starts cold."""
        with self._turns.exclusive():
            self._turns.begin()
            for session in self._loaded.sessions:
                session.roll_back(0)

    def profile(self, *, refresh: bool = False, on_step: Callable[[float], None] = lambda _: None) -> Profile:
        """Return how long both models take for batches of each size; measured once per machine, then read from the user's cache folder.

        From then on this runtime uses the thread counts and the padding that were fastest. Both caches are empty afterwards. With
        ``refresh`` it measures again. ``on_step`` is called with the progress, 0..1.
        """
        with self._turns.whole_call(), self._turns.exclusive():
            self._turns.begin()
            pair = self._loaded
            for session in pair.sessions:
                session.roll_back(0)
            threads = self._expert.context.named_threads
            pair.profile = profile_of(self._sessions.get("drafter"), self._expert, threads=threads, refresh=refresh, on_step=on_step)
            return pair.profile

    def learnt(self) -> dict[str, Any]:
        """Return what this runtime has learnt about lengths, for JSON and :func:`load`. Calls with a seed teach nothing."""
        return {key: history.as_dict() for key, history in self._loaded.learnt.items()}

    def start_from(self, learnt: Mapping[str, Any], profile: Profile | None = None) -> None:
        """Let calls that name a seed begin with what :meth:`learnt` gave, and weigh lengths by this profile.

        So answers repeat even where the machine was measured again. Raises SettingError.
        """
        histories = read_histories(learnt)
        with self._turns.whole_call(), self._turns.exclusive():
            self._turns.begin()
            self._loaded.start, self._loaded.learnt = histories, deepcopy(histories)
            if profile is not None:
                apply_profile(profile, self._sessions.get("drafter"), self._expert)
                self._loaded.profile = profile

    @contextmanager
    def shared(self, count: int) -> Iterator[SharedPair]:
        """Make room for ``count`` replies at once, whose models read in common batches.

        Inside the block the runtime answers nothing itself. Raises SessionError where it was not loaded for that many ``timelines``.
        """
        if self._loaded.profile is None:
            self.profile()
        shared = None
        try:
            with self._turns.exclusive():
                self._turns.begin()
                shared = SharedPair(self._loaded, self._sessions, count)
                self._turns.shared_by = weakref.ref(shared)
            yield shared
        finally:
            if shared is not None:
                with self._turns.exclusive():
                    self._turns.shared_by = lambda: None
                    shared.close()

    @property
    def models(self) -> dict[str, LlamaModel]:
        """The loaded models by role: drafter and expert; no drafter where drafts are copied from the text."""
        return {role: session.model for role, session in self._sessions.items()}

    @property
    def threads(self) -> dict[str, tuple[int, int]]:
        """Threads for single tokens and for batches, by role."""
        return {role: (session.context.threads, session.context.batch_threads) for role, session in self._sessions.items()}

    @property
    def _sessions(self) -> dict[str, LlamaSession]:
        both = {"drafter": self._drafter, "expert": self._expert}
        return {role: session for role, session in both.items() if isinstance(session, LlamaSession)}

    def close(self) -> None:
        """Free both models. Harmless when repeated; every other method raises SessionError afterwards."""
        if not in_own_process():
            return  # a fork frees nothing, and must not touch the other process's turns
        with self._turns.exclusive():
            self._turns.end_streams()
            self._resources.close()

    def __reduce__(self) -> NoReturn:
        raise SessionError("a runtime cannot be copied or sent to another process; load the pair there, with the same arguments")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @cached_property
    def _template(self) -> ChatTemplate:
        """Compiled when first needed, so that a pair with a broken template still takes raw prompts."""
        if not self.has_chat_template:
            raise PromptError(f"{self._model.path.name} has no chat template; use a raw prompt (generate, or --raw)")
        source = self._model.chat_template or ""
        return ChatTemplate(source, special_texts=self._tokenizer.special_texts, control_texts=self._tokenizer.control_texts)

    def _ids(self, prompt: Prompt) -> list[int]:
        if self._model.closed:
            raise SessionError("this runtime is closed; load the pair again")
        trained = min(session.model.n_ctx_train for session in self._sessions.values())
        return prompt_ids(prompt, self._tokenizer, n_vocab=self.n_vocab, n_ctx=self.n_ctx, n_ctx_trained=trained)

    def _reply(self, prompt: Prompt, settings: Settings, watch: Watch) -> Reply:
        with self._turns.whole_call():
            return Reply.of(list(self._start(prompt, settings, watch)))

    def _start(self, prompt: Prompt, settings: Settings, watch: Watch) -> Iterator[Chunk]:
        """Refuse bad input and end earlier streams now; evaluate when the first block is asked for."""
        method = self.method(settings)
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        ids = self.prompt_ids(prompt)
        if settings.block_size == "auto" and method.in_blocks and method.asks_expert and self._loaded.profile is None:
            self.profile()
        with self._turns.exclusive():
            chunks = answer(self._loaded, ids, settings, method, seed, unwanted=lambda: watch.is_cancelled)
        with self._turns.whole_call(), self._turns.exclusive():
            return self._in_turn(chunks, self._turns.begin(), watch, Chunk((), None, Stats(prompt_tokens=len(ids)), method, seed))

    @contextmanager
    def _prefill_watched(self, watch: Watch) -> Iterator[None]:
        """Inside the block the prefill of a long prompt ends when the call is cancelled."""
        contexts = [session.context for session in self._sessions.values()]
        for context in contexts:
            context.unwanted = lambda: watch.is_cancelled
        try:
            yield
        finally:
            for context in contexts:
                context.unwanted = lambda: False

    def _in_turn(self, chunks: Iterator[Chunk | None], turn: int, watch: Watch, last: Chunk) -> Iterator[Chunk]:
        """Decode each block under the lock, and only while no later call has come. ``last``: what stands before the first chunk."""
        while last.finish_reason is None:
            with self._turns.exclusive():
                self._turns.require_latest(turn)
                if watch.is_cancelled:
                    chunks = iter([last.cancelled()])  # the loop ends here and now, while no other thread evaluates
                with self._prefill_watched(watch):
                    try:
                        chunk = next(chunks)
                    except UnwantedError:
                        chunk = last.cancelled()
            if chunk is not None:
                last = chunk
                if watch.on_chunk:
                    watch.on_chunk(chunk)
                yield chunk
