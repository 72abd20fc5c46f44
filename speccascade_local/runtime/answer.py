"""One reply: the decoding loop with text, fidelity and statistics around it, as chunks.

:class:`_ReplyMaker` chooses the loop that the method needs: blocks (decoding/loop.py), single tokens (decoding/token_loop.py) or whole
answers (rules/routes.py). After every chunk both sessions are fit for the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..common.errors import SettingError
from ..decoding.audit import Audit
from ..decoding.auto_length import AutoLength
from ..decoding.draft import Session
from ..decoding.fidelity import Distribution, Entry
from ..decoding.generation import Generation
from ..decoding.history import AcceptanceHistory
from ..decoding.loop import Block, BlockLoop
from ..decoding.ngram import NgramIndex, NgramSession
from ..decoding.overlap import wait_for
from ..decoding.profile import Profile
from ..decoding.stats import Stats
from ..decoding.token_loop import token_cascade
from ..llama.batch import Rollbacks
from ..llama.session import LlamaSession
from ..llama.tokenizer import Tokenizer
from ..rules.position_rules import Never, Strict
from ..rules.routes import Route, Signals, TokenCascade
from ..rules.rule import Method, Rule
from ..tokens.grammar import Grammar
from ..tokens.prompt import shared_prefix_length
from ..tokens.shaping import ForbiddenIds, Shaper
from ..tokens.text_stream import TextStream
from ..tokens.vocabulary import Vocabulary
from .reply import Candidate, Chunk, Logprobs, Token
from .settings import Settings

#: Tokens per block where no expert checks them, so that their number does not matter.
UNCHECKED_BLOCK = 5


@dataclass(eq=False)
class LoadedPair:
    """What a reply is made with."""

    drafter: Session  # its session
    expert: Session  # its session
    tokenizer: Tokenizer  # the expert's, which serves both
    vocabulary: Vocabulary  # the texts of the ids
    profile: Profile | None = None  # seconds of both models; None until a call asks for automatic lengths
    # the histories of acceptance when the pair was loaded, by rule and temperature
    start: dict[str, AcceptanceHistory] = field(default_factory=dict)
    learnt: dict[str, AcceptanceHistory] = field(init=False)  # the same histories as they are now
    index: NgramIndex = field(default_factory=NgramIndex)  # guesses from the text

    def __post_init__(self) -> None:
        self.learnt = deepcopy(self.start)

    def with_sessions(self, sessions: Mapping[str, LlamaSession]) -> LoadedPair:
        """Return the same models with other timelines, by role. Its histories are its own, and begin as when the pair was loaded."""
        drafter = sessions.get("drafter") or NgramSession(self.expert.n_vocab, self.expert.n_ctx)
        return replace(self, drafter=drafter, expert=sessions["expert"], index=NgramIndex())

    @property
    def sessions(self) -> list[Session]:
        return [self.drafter, self.expert]

    @property
    def rollbacks(self) -> Rollbacks:
        """What rollbacks have cost both models so far."""
        costs = [session.rollbacks for session in self.sessions if isinstance(session, LlamaSession)]
        return Rollbacks(*(sum(figures) for figures in zip(*map(astuple, costs))))


def answer(
    pair: LoadedPair,
    ids: list[int],
    settings: Settings,
    method: Method,
    seed: int,
    *,
    grammar: Grammar | None = None,
    unwanted: Callable[[], bool] = lambda: False,
    cold: bool | None = None,
) -> Iterator[Chunk | None]:
    """Continue ``ids``, chunk by chunk; None for a block that shows nothing yet, because it is undecided who answers.

    The grammar is compiled before this returns; the rest is done when the first chunk is asked for. Raises SettingError where the grammar
    or an id is wrong, and UnwantedError where the caller has given up.

    Args:
        pair: the loaded pair.
        ids: the prompt.
        settings: how the reply is made.
        method: what these settings ask for on this pair.
        seed: of the random numbers.
        grammar: the settings' own, where it is compiled already.
        unwanted: asked, while a grammar compiles, whether the caller has given up.
        cold: use of the caches only what a cold prefill would have written; None: where the settings name a seed.
    """
    constraint = grammar or compile_grammar(settings, pair.tokenizer, pair.expert.n_vocab, unwanted) or _forbid_end(pair, settings)
    shaper = Shaper(pair.expert.n_vocab, ids, settings.penalties, constraint)
    audit = Audit(ids, settings.sampler, shaper, settings.recording) if settings.audit and settings.recording else None
    maker = _ReplyMaker(pair, ids, settings, seed, shaper, audit, settings.seed is not None if cold is None else cold)
    return maker.chunks(method)


def compile_grammar(settings: Settings, tokenizer: Tokenizer, n_vocab: int, unwanted: Callable[[], bool]) -> Grammar | None:
    """Return the grammar of the settings, ready for one reply; None without one. Raises SettingError and UnwantedError."""
    source = settings.constraint
    return None if source is None else Grammar(tokenizer.for_grammars, source, n_vocab, unwanted)


def _forbid_end(pair: LoadedPair, settings: Settings) -> ForbiddenIds | None:
    """Return what keeps the reply from ending, if anything; never used with a grammar, see settings.py. Raises SettingError."""
    n_vocab, own = pair.expert.n_vocab, settings.stop_token_ids
    if own and max(own) >= n_vocab:
        raise SettingError(f"stop_token_ids names token id {max(own)}; the ids that both models have are 0 to {n_vocab - 1}")
    if not (settings.min_tokens or settings.ignore_eos):
        return None
    ends = [token for token in pair.tokenizer.end_ids if token < n_vocab]
    return ForbiddenIds(n_vocab, early=[*ends, *own], least=settings.min_tokens, always=ends if settings.ignore_eos else ())


@dataclass(frozen=True, eq=False)
class _ReplyMaker:
    """Makes one reply; its fields are what each of its steps needs."""

    pair: LoadedPair
    ids: list[int]
    settings: Settings
    seed: int
    shaper: Shaper
    audit: Audit | None
    cold: bool

    def chunks(self, method: Method) -> Iterator[Chunk | None]:
        """Yield the chunks of the reply; see :func:`answer`."""
        if isinstance(method, Route):
            chunks = self._route(method)
        else:
            assert isinstance(method, Rule)
            chunks = (chunk for chunk, _ in self._decode(method))
        return chunks if self.audit is None else self._with_audit(chunks, self.audit)

    def _decode(self, rule: Rule) -> Iterator[tuple[Chunk, Block]]:
        """Run the loop with text around it."""
        pair, settings, tokenizer = self.pair, self.settings, self.pair.tokenizer
        stats = Stats(prompt_tokens=len(self.ids))
        text = TextStream(tokenizer.piece, self._is_end, settings.stop, partial(tokenizer.piece, special=True))
        cached = {session: roll_back_to_prefix(session, self.ids, cold=self.cold) for session in pair.sessions}
        stats.cached_tokens = cached[pair.expert if rule.asks_expert else pair.drafter]
        before = pair.rollbacks
        for block in self._blocks(rule, text, stats):
            if self.audit is not None:
                self.audit.keep(block)
            if block.finish_reason is not None:
                text.finish()
            now = pair.rollbacks
            stats.replayed, stats.checkpoints = now.replayed - before.replayed, now.saved - before.saved
            stats.rollback_s = now.seconds - before.seconds
            yield self._chunk(block, text, stats, rule), block

    def _blocks(self, rule: Rule, text: TextStream, stats: Stats) -> Iterator[Block]:
        pair, settings = self.pair, self.settings
        generation = Generation(list(self.ids), settings.sampler, np.random.default_rng(self.seed), self._is_end, self.shaper)
        common: dict[str, Any] = {"max_tokens": settings.max_tokens, "stops": text.feed, "stats": stats, "recording": settings.recording}
        if isinstance(rule, TokenCascade):
            return token_cascade(generation, pair.drafter, pair.expert, rule=rule, **common)
        lengths = self._lengths(rule)
        return BlockLoop(
            generation,
            pair.drafter,
            pair.expert,
            rule=rule,
            block_size=UNCHECKED_BLOCK if settings.block_size == "auto" and not rule.asks_expert else settings.longest_block,
            verification=settings.verification,
            bonus=settings.bonus,
            vocabulary=pair.vocabulary,
            lengths=lengths,
            index=None if lengths is None else pair.index,
            **common,
        ).decode()

    def _is_end(self, token: int) -> bool:
        return token in self.settings.stop_token_ids or self.pair.tokenizer.is_end(token)

    def _lengths(self, rule: Rule) -> AutoLength | None:
        """Return what decides how long drafts are; None where that is fixed."""
        pair, settings = self.pair, self.settings
        if settings.block_size != "auto" or not rule.asks_expert:
            return None
        assert pair.profile is not None
        key = f"{rule} at temperature {settings.temperature:g}"
        # A seed repeats an answer, whatever was asked since the pair was loaded.
        histories = pair.learnt if settings.seed is None else deepcopy({key: pair.start[key]} if key in pair.start else {})
        return AutoLength(
            pair.profile,
            histories.setdefault(key, AcceptanceHistory()),
            has_drafter=not (isinstance(pair.drafter, NgramSession) and isinstance(rule, Strict)),
            prompt=len(self.ids) - 1 if self.cold else None,
        )

    def _with_audit(self, chunks: Iterator[Chunk | None], audit: Audit) -> Iterator[Chunk | None]:
        """Yield the chunks, and a last one with the fidelity of all tokens; None after each batch that the expert reads for it."""
        tokens: list[Token] = []
        for chunk in chunks:
            tokens += chunk.tokens if chunk is not None else ()
            if chunk is None or chunk.finish_reason is None or not audit.due:
                yield chunk
                continue
            yield replace(chunk, finish_reason=None)
            stats = replace(chunk.stats)
            for entries in audit.entries(self.pair.expert, stats):
                for place, entry in entries.items():
                    tokens[place] = self._with_entry(tokens[place], entry)
                yield None
            yield replace(chunk, tokens=(), stats=stats, audited=tuple(tokens))

    def _route(self, route: Route) -> Iterator[Chunk | None]:
        """Yield the drafter's whole answer or, where its score is too low, the expert's, with statistics of both."""
        chunks: list[Chunk] = []
        signals: list[Signals] = []
        drafting = replace(self, settings=replace(self.settings, block_size=self.settings.block_size or UNCHECKED_BLOCK))
        for chunk, block in drafting._decode(Never()):
            chunks.append(chunk)
            signals.append(Signals.of(chunk.token_ids, block.draft.rows))
            yield None
        score = route.score(Signals.join(signals))
        spent = chunks[-1].stats
        if score >= route.threshold:
            for chunk in chunks:  # none of it could be shown before the whole answer was there
                yield replace(chunk, stats=replace(chunk.stats, wall_s=spent.wall_s, ttft_s=spent.wall_s), rule=route, confidence=score)
            return
        if self.audit is not None:
            self.audit.clear()
        alone = replace(self, settings=replace(self.settings, block_size=0), audit=None)
        for chunk, _ in alone._decode(Strict()):
            stats = replace(
                chunk.stats,
                drafter_calls=spent.drafter_calls,
                draft_s=spent.draft_s,
                verify_s=spent.verify_s + chunk.stats.verify_s,
                wall_s=spent.wall_s + chunk.stats.wall_s,
                ttft_s=spent.wall_s + chunk.stats.ttft_s,
            )
            yield replace(chunk, stats=stats, rule=route, confidence=score)

    def _chunk(self, block: Block, text: TextStream, stats: Stats, rule: Rule) -> Chunk:
        verdict = block.verdict
        pieces = text.pieces[len(text.pieces) - len(verdict.token_ids) :]
        tokens = [Token(*fields) for fields in zip(verdict.token_ids, pieces, verdict.origins)]
        if verdict.dropped_ids:
            dropped = b"".join(map(self.pair.tokenizer.piece, verdict.dropped_ids))
            tokens[-1] = tokens[-1]._replace(dropped=dropped.decode(errors="replace"))
        if verdict.entries:
            tokens = list(map(self._with_entry, tokens, verdict.entries))
        return Chunk(tuple(tokens), block.finish_reason, replace(stats), rule, self.seed)

    def _with_entry(self, token: Token, entry: Entry) -> Token:
        return token._replace(
            tv=entry.tv,
            expert_logprob=entry.expert_logprob,
            drafter_logprob=entry.drafter_logprob,
            logprobs=self._logprobs(entry.logprobs),
            expert_logprobs=self._logprobs(entry.expert),
            drafter_logprobs=self._logprobs(entry.drafter),
        )

    def _logprobs(self, distribution: Distribution | None) -> Logprobs | None:
        if distribution is None:
            return None
        pieces = [(token, self.pair.vocabulary.pieces[token], logprob) for token, logprob in distribution.top]
        top = (Candidate(token, piece.decode(errors="replace"), piece, logprob) for token, piece, logprob in pieces)
        return Logprobs(distribution.logprob, tuple(top))


def roll_back_to_prefix(session: Session, ids: list[int], *, cold: bool = False) -> int:
    """Roll the session back to what it shares with ``ids`` except the last, which must be evaluated again.

    With ``cold`` only what a cold prefill would have written stays, to the bit, so that rows do not depend on earlier calls. Returns the
    number of tokens that need no reading again.
    """
    wait_for(session)
    shared = shared_prefix_length(session.tokens, ids[:-1])
    if cold and isinstance(session, LlamaSession):
        shared = session.aligned(shared)
    session.roll_back(shared)
    return shared - (session.missing if isinstance(session, LlamaSession) else 0)
