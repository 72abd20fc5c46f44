"""The object that users hold: two loaded models that answer as one.

Carries both caches from call to call, and lets calls take turns: a new call supersedes a stream that was not read to its end. How a
reply is made is runtime/answer.py's business. Knows nothing of terminals, and of files only their paths.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import cached_property
from types import TracebackType
from typing import Any, NoReturn, cast

from ..common.errors import PromptError, SessionError, UnwantedError
from ..decoding.history import AcceptanceHistory
from ..decoding.ngram import NgramSession
from ..decoding.profile import Profile
from ..decoding.stats import Stats
from ..llama.backend import in_own_process, require_own_process
from ..llama.model import LlamaModel
from ..llama.session import LlamaSession, SavedState, restore_state, save_state
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
from .settings import Call, Settings, takes_settings
from .shared_pair import SharedPair

#: A text, its ids, or the messages of a chat.
Question = Prompt | Sequence[Message]


class Runtime:
    """A loaded pair. Made by :func:`load`; use it as a context manager, or close it.

    A runtime answers one call at a time: calls from several threads wait for one another, and a stream that was not read to its
    end is ended by the next call. Ctrl-C or a stream that is dropped half-way leaves the runtime usable, and what both caches hold
    is reused by the next call that begins with the same tokens. It belongs to its process: in a fork every call raises SessionError.
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
        #: Whether :meth:`chat` works for this pair.
        self.has_chat_template = self._tokenizer.has_text and bool(self._model.chat_template)
        vocabulary = Vocabulary(self.n_vocab, lambda token: self._tokenizer.piece(token, special=True))
        self._loaded = LoadedPair(drafter, expert, self._tokenizer, vocabulary, start=dict(learnt or {}))
        self._resources = resources
        self._whole_calls = threading.RLock()  # held while a whole reply is made
        self._block: Any = threading.RLock()  # held while one block is made
        self._shared: Callable[[], SharedPair | None] = lambda: None  # with what others answer with its models, as long as it is used
        self._turn = 0  # the latest call; streams of earlier ones are over

    # ------------------------------------------------------------------ the verbs

    @takes_settings
    def generate(self, prompt: Prompt, call: Call) -> Reply:
        """Continue a raw prompt (text, in which control tokens are read, or a list of ids) and return the whole reply.

        What each keyword means: :class:`speccascade_local.runtime.settings.Settings`, and ``Call`` beside it for cancel and on_chunk. Raises
        PromptError, ContextOverflowError and SettingError before anything is evaluated, and SettingError where a rule of the user's own
        or a grammar fails on the way.
        """
        return self._reply(prompt, call)

    @takes_settings
    def stream(self, prompt: Prompt, call: Call) -> Iterator[Chunk]:
        """Like :meth:`generate`, block by block. Bad input is refused by the call itself, not by the first chunk."""
        return self._start(prompt, call)

    @takes_settings
    def chat(self, messages: Sequence[Message], call: Call) -> Reply:
        """Answer a conversation, ``[{"role": "user", "content": "Hi"}, ...]``, through the expert's chat template.

        Where the last message is the assistant's, the reply is what follows it: see :meth:`chat_ids`.
        """
        return self._reply(self.chat_ids(messages), call)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a raw prompt, as :meth:`generate` takes it. Raises PromptError and ContextOverflowError."""
        with self._exclusively():
            return self._ids(prompt)

    def method(self, settings: Settings) -> Method:
        """How tokens are settled under these settings, the pair's own rule where they name none. Raises SettingError."""
        method = settings.method(self.rule)
        if isinstance(method, Route):
            method.check_pair(self.pair.drafter, self.pair.expert)
        return method

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, continues: bool = True) -> list[int]:
        """The prompt that the expert's chat template makes of a conversation, and of functions that may be called.

        A control token that a message merely spells out stays plain text. continues: where the last message is the assistant's, the prompt
        ends with its content as the template writes it, for the model to go on with; without it the message is over, and another begins.
        Raises PromptError when the expert has no template, or one that cannot leave an answer unfinished.
        """
        with self._exclusively():
            return Transcript().prompt(self._template.render(messages, tools, continues=continues), self._tokenizer).ids

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for functions that may be called. Raises PromptError where there is no template."""
        return self._template.takes_tools

    def chat_prompt(self, messages: Sequence[Message], said: Transcript = Transcript()) -> Transcript:  # noqa: B008  # a frozen value
        """Like :meth:`chat_ids`, for a conversation that goes on: what was ``said`` keeps its ids where the prompt begins with it."""
        with self._exclusively():
            return said.prompt(self._template.render(messages), self._tokenizer)

    def transcript_of(self, question: Question, said: Transcript = Transcript()) -> Transcript:  # noqa: B008  # a frozen value
        """The ids of a prompt, or of a list of messages as :meth:`chat_prompt` makes them. Raises PromptError, ContextOverflowError."""
        if not isinstance(question, str) and question and isinstance(question[0], Mapping):
            prompt = self.chat_prompt(cast(Sequence[Message], question), said)
            self.prompt_ids(prompt.ids)  # refuses too many
            return prompt
        return Transcript().answered(self.prompt_ids(cast(Prompt, question)))

    def saved_caches(self) -> dict[str, SavedState]:
        """What the models' caches hold, by role. Raises SessionError."""
        with self._exclusively():
            self._require_unshared()
            return {role: save_state(session) for role, session in self._sessions.items()}

    def restore_cache(self, role: str, kept: SavedState) -> None:
        """Fill one model's cache. Raises SessionError where llama.cpp does not take it, and then that cache is empty."""
        with self._exclusively():
            self._require_unshared()
            self._turn += 1
            restore_state(self._sessions[role], kept)

    def reset(self) -> None:
        """Forget what both caches hold, so that the next call starts cold."""
        with self._exclusively():
            self._require_unshared()
            self._turn += 1
            for session in self._loaded.sessions:
                session.roll_back(0)

    def profile(self, *, refresh: bool = False, on_step: Callable[[float], None] = lambda _: None) -> Profile:
        """How long both models take for batches of each size, measured once per machine and kept in the user's cache folder.

        From now on this runtime uses the thread counts and the padding that were found to be fastest. Both caches are empty
        afterwards. refresh: measure again. on_step: called with 0..1 on the way.
        """
        self._refuse_endless_waits()
        with self._whole_calls, self._exclusively():
            self._require_unshared()
            self._turn += 1
            pair = self._loaded
            for session in pair.sessions:
                session.roll_back(0)
            drafter = self._sessions.get("drafter")
            pair.profile = profile_of(drafter, self._expert, threads=self._expert.context.named_threads, refresh=refresh, on_step=on_step)
            return pair.profile

    def learnt(self) -> dict[str, Any]:
        """What this runtime has learnt about lengths, for JSON; :func:`load` takes it as ``learnt``. Calls with a seed teach nothing."""
        return {key: experience.as_dict() for key, experience in self._loaded.learnt.items()}

    def start_from(self, learnt: Mapping[str, Any], profile: Profile | None = None) -> None:
        """From now on calls that name a seed begin with what :meth:`learnt` gave, and lengths are weighed by this profile.

        So that answers can be repeated where, in between, the machine was measured again. Raises SettingError.
        """
        known = read_histories(learnt)
        with self._whole_calls, self._exclusively():
            self._require_unshared()
            self._turn += 1
            self._loaded.start, self._loaded.learnt = known, deepcopy(known)
            if profile is not None:
                apply_profile(profile, self._sessions.get("drafter"), self._expert)
                self._loaded.profile = profile

    @contextmanager
    def shared(self, count: int) -> Iterator[SharedPair]:
        """Room for so many replies at once, whose models read in common batches.

        Until this is left the runtime answers nothing itself. Raises SessionError where it was not loaded for so many ``timelines``.
        """
        if self._loaded.profile is None:
            self.profile()
        sharing = None
        try:
            with self._exclusively():
                self._require_unshared()
                self._turn += 1
                sharing = SharedPair(self._loaded, self._sessions, count)
                self._shared = weakref.ref(sharing)
            yield sharing
        finally:
            if sharing is not None:
                with self._exclusively():
                    self._shared = lambda: None
                    sharing.close()

    @property
    def models(self) -> dict[str, LlamaModel]:
        """The loaded models by role: drafter and expert; no drafter where drafts are copied from the text."""
        return {role: session.model for role, session in self._sessions.items()}

    @property
    def threads(self) -> dict[str, tuple[int, int]]:
        """For single tokens and for batches, by role."""
        return {role: (session.context.threads, session.context.batch_threads) for role, session in self._sessions.items()}

    @property
    def _sessions(self) -> dict[str, LlamaSession]:
        found = {"drafter": self._drafter, "expert": self._expert}
        return {role: session for role, session in found.items() if isinstance(session, LlamaSession)}

    def close(self) -> None:
        """Free both models. Harmless when repeated; every other method raises SessionError afterwards."""
        if not in_own_process():
            return  # a fork frees nothing, and has no say about the other process's turns
        with self._exclusively():
            self._turn += 1
            self._resources.close()

    def __reduce__(self) -> NoReturn:
        raise SessionError("a runtime cannot be copied or sent to another process; load the pair there, by the same arguments")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------ how

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

    def _reply(self, prompt: Prompt, call: Call) -> Reply:
        self._refuse_endless_waits()  # before it waits for another thread, which waits for the block that is asking
        with self._whole_calls:
            return Reply.of(list(self._start(prompt, call)))

    def _start(self, prompt: Prompt, call: Call) -> Iterator[Chunk]:
        """Refuse bad input and end earlier streams now; evaluate when the first block is asked for."""
        method = self.method(call)
        seed = secrets.randbits(32) if call.seed is None else call.seed
        ids = self.prompt_ids(prompt)
        if call.block_size == "auto" and method.in_blocks and method.asks_expert and self._loaded.profile is None:
            self.profile()
        with self._exclusively():
            chunks = answer(self._loaded, ids, call, method, seed, unwanted=lambda: call.cancelled)
        with self._whole_calls, self._exclusively():
            self._require_unshared()
            self._turn += 1
            return self._in_turn(chunks, self._turn, call, Chunk((), None, Stats(prompt_tokens=len(ids)), method, seed))

    def _exclusively(self) -> AbstractContextManager[Any]:
        """The lock of one block, for a with statement: nobody else evaluates, or closes the models, meanwhile.

        A rule of the user's own that calls the runtime which is asking it would wait for itself. It is the lock itself and no generator
        around it: entering and leaving it is C code, so Ctrl-C never leaves it locked.
        """
        self._refuse_endless_waits()
        return cast(AbstractContextManager[Any], self._block)

    def _require_unshared(self) -> None:
        if self._shared() is not None:
            raise SessionError("this runtime's models answer for an engine; submit requests there, or close it first")

    def _refuse_endless_waits(self) -> None:
        """Of a rule for itself, of a fork for threads that only the other process has. Raises SessionError."""
        require_own_process()
        if self._block._is_owned():  # by this thread
            raise SessionError("a rule may not call the runtime that is asking it; load a second one for that")

    @contextmanager
    def _watched(self, call: Call) -> Iterator[None]:
        """Within the block the reading of a long prompt ends when the call is cancelled."""
        contexts = [session.context for session in self._sessions.values()]
        for context in contexts:
            context.unwanted = lambda: call.cancelled
        try:
            yield
        finally:
            for context in contexts:
                context.unwanted = lambda: False

    def _in_turn(self, chunks: Iterator[Chunk | None], turn: int, call: Call, last: Chunk) -> Iterator[Chunk]:
        """Each block is decoded under the lock, and only while no later call has come. last: what stands before the first chunk."""
        while last.finish_reason is None:
            with self._exclusively():
                if turn != self._turn:
                    raise SessionError(
                        "this stream was ended by a later call on its runtime (or by closing it); "
                        "read a stream to its end first, or load a second runtime"
                    )
                if call.cancelled:
                    chunks = iter([last.cancelled()])  # the loop ends here and now, while nobody else evaluates
                with self._watched(call):
                    try:
                        chunk = next(chunks)
                    except UnwantedError:
                        chunk = last.cancelled()
            if chunk is not None:
                last = chunk
                if call.on_chunk:
                    call.on_chunk(chunk)
                yield chunk
