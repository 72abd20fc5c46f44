"""One reply in the making: the decoding loop with text, account and statistics around it, as chunks.

Chooses the loop that a method needs: blocks (decoding/loop.py), single tokens or whole answers (rules/routes.py). Knows nothing of how calls
take turns, and leaves both sessions fit for the next one after every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import astuple, dataclass, field, replace
from functools import partial

import numpy as np

from ..common.errors import SettingError
from ..decoding.audit import Audit
from ..decoding.auto_length import AutoLength
from ..decoding.draft import Session
from ..decoding.fidelity import Distribution, Entry
from ..decoding.generation import Generation
from ..decoding.history import AcceptanceHistory
from ..decoding.lengths import LengthPolicy
from ..decoding.loop import Block, decode
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

#: Tokens per block where no expert checks them, so that their number is of no consequence.
UNCHECKED_BLOCK = 5


@dataclass(eq=False)
class LoadedPair:
    """What a reply is made with: the sessions, the expert's tokenizer, and what is known about lengths.

    profile: of drafter and expert; None as long as nobody has asked for automatic lengths. learnt: by rule and temperature; start: what it was when the pair was loaded.
    """

    drafter: Session
    expert: Session
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    profile: Profile | None = None
    start: dict[str, AcceptanceHistory] = field(default_factory=dict)
    learnt: dict[str, AcceptanceHistory] = field(init=False)
    index: NgramIndex = field(default_factory=NgramIndex)

    def __post_init__(self) -> None:
        self.learnt = deepcopy(self.start)

    def beside(self, sessions: Mapping[str, LlamaSession]) -> LoadedPair:
        """The same models with other timelines, by role. What it learns is its own, beginning with what was known when loading."""
        drafter = sessions.get("drafter") or NgramSession(self.expert.n_vocab, self.expert.n_ctx)
        return replace(self, drafter=drafter, expert=sessions["expert"], index=NgramIndex())

    @property
    def sessions(self) -> list[Session]:
        """All timelines."""
        return [self.drafter, self.expert]

    @property
    def rollbacks(self) -> Rollbacks:
        """What going back has cost all models so far."""
        spent = [session.rollbacks for session in self.sessions if isinstance(session, LlamaSession)]
        return Rollbacks(*(sum(figures) for figures in zip(*map(astuple, spent))))


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
    """Continue ``ids``, chunk by chunk; None for a block that shows nothing yet, because it is not decided who answers.

    grammar: that of the settings, where it is compiled already; else it is compiled before this returns. The rest is done when the first
    chunk is asked for. unwanted: asked while a grammar works whether the caller has given up. cold: keep of the caches only what
    a cold reading would have written; None: where the settings name a seed. Raises SettingError and UnwantedError.
    """
    n_vocab = pair.expert.n_vocab
    unended = _forbid_end(pair, settings)
    constraint = grammar or compile_grammar(settings, pair.tokenizer, n_vocab, unwanted) or unended
    shaper = Shaper(n_vocab, ids, settings.penalties, constraint)
    cold = settings.seed is not None if cold is None else cold
    audit = Audit(ids, settings.sampler, shaper, settings.wanted) if settings.audit and settings.wanted else None
    if isinstance(method, Route):
        chunks = _route(pair, ids, settings, method, seed, shaper, audit, cold)
    else:
        assert isinstance(method, Rule)
        chunks = (chunk for chunk, _ in _decode(pair, ids, settings, method, seed, shaper, audit, cold))
    return chunks if audit is None else _audit(pair, chunks, audit)


def compile_grammar(settings: Settings, tokenizer: Tokenizer, n_vocab: int, unwanted: Callable[[], bool]) -> Grammar | None:
    """The grammar that the settings name, ready for one reply; None without one. Raises SettingError and UnwantedError."""
    source = settings.constraint
    return None if source is None else Grammar(tokenizer.for_grammars, source, n_vocab, unwanted)


def _forbid_end(pair: LoadedPair, settings: Settings) -> ForbiddenIds | None:
    """What keeps the reply from ending, if anything; never beside a grammar, see runtime/settings.py. Raises SettingError."""
    n_vocab, own = pair.expert.n_vocab, settings.stop_token_ids
    if own and max(own) >= n_vocab:
        raise SettingError(f"stop_token_ids names token id {max(own)}; the ids that both models have are 0 to {n_vocab - 1}")
    if not (settings.min_tokens or settings.ignore_eos):
        return None
    ends = [token for token in pair.tokenizer.end_ids if token < n_vocab]
    return ForbiddenIds(n_vocab, early=[*ends, *own], least=settings.min_tokens, always=ends if settings.ignore_eos else ())


def _ends(pair: LoadedPair, settings: Settings) -> Callable[[int], bool]:
    """Whether an id ends this reply."""
    own = frozenset(settings.stop_token_ids)
    return (lambda token: token in own or pair.tokenizer.is_end(token)) if own else pair.tokenizer.is_end


def _decode(
    pair: LoadedPair, ids: list[int], settings: Settings, rule: Rule, seed: int, shaper: Shaper, audit: Audit | None, cold: bool
) -> Iterator[tuple[Chunk, Block]]:
    """The loop with text around it."""
    stats = Stats(prompt_tokens=len(ids))
    text = TextStream(pair.tokenizer.piece, _ends(pair, settings), settings.stop, partial(pair.tokenizer.piece, special=True))
    shared = {session: roll_back_to_prefix(session, ids, cold=cold) for session in pair.sessions}
    stats.cached_tokens = shared[pair.expert if rule.asks_expert else pair.drafter]
    before = pair.rollbacks
    for block in _blocks(pair, list(ids), settings, rule, seed, shaper, text, stats, len(ids) - 1 if cold else None):
        if audit is not None:
            audit.keep(block)
        if block.finish_reason is not None:
            text.finish()
        now = pair.rollbacks
        stats.replayed, stats.checkpoints = now.replayed - before.replayed, now.saved - before.saved
        stats.rollback_s = now.seconds - before.seconds
        yield _chunk(pair, block, text, stats, rule, seed), block


def _blocks(
    pair: LoadedPair,
    tokens: list[int],
    settings: Settings,
    rule: Rule,
    seed: int,
    shaper: Shaper,
    text: TextStream,
    stats: Stats,
    unread: int | None,
) -> Iterator[Block]:
    generation = Generation(tokens, settings.sampler, np.random.default_rng(seed), _ends(pair, settings), shaper)
    if isinstance(rule, TokenCascade):
        return token_cascade(
            generation,
            pair.drafter,
            pair.expert,
            rule=rule,
            max_tokens=settings.max_tokens,
            stops=text.feed,
            stats=stats,
            wanted=settings.wanted,
        )
    pace, index = _lengths(pair, settings, rule, unread)
    block_size = UNCHECKED_BLOCK if settings.block_size == "auto" and not rule.asks_expert else settings.longest_block
    return decode(
        generation,
        pair.drafter,
        pair.expert,
        rule=rule,
        block_size=block_size,
        max_tokens=settings.max_tokens,
        stops=text.feed,
        stats=stats,
        verification=settings.verification,
        bonus=settings.bonus,
        wanted=settings.wanted,
        vocabulary=pair.vocabulary,
        pace=pace,
        index=index,
    )


def _lengths(pair: LoadedPair, settings: Settings, rule: Rule, unread: int | None) -> tuple[LengthPolicy | None, NgramIndex | None]:
    """Who decides how long the drafts are, and the index that guesses come from."""
    if settings.block_size != "auto" or not rule.asks_expert:
        return None, None
    assert pair.profile is not None
    key = f"{rule} at temperature {settings.temperature:g}"
    learnt = pair.learnt
    if settings.seed is not None:  # a seed repeats an answer, whatever was asked in between
        learnt = {key: deepcopy(pair.start[key])} if key in pair.start else {}
    pace = AutoLength(
        pair.profile,
        learnt.setdefault(key, AcceptanceHistory()),
        has_drafter=not (isinstance(pair.drafter, NgramSession) and isinstance(rule, Strict)),
        prompt=unread,
    )
    return pace, pair.index


def _audit(pair: LoadedPair, chunks: Iterator[Chunk | None], audit: Audit) -> Iterator[Chunk | None]:
    """All text as it comes, and behind it a last chunk with the complete account; None after each batch that the expert has read for it."""
    tokens: list[Token] = []
    for chunk in chunks:
        tokens += chunk.tokens if chunk is not None else ()
        if chunk is None or chunk.finish_reason is None or not audit.due:
            yield chunk
            continue
        yield replace(chunk, finish_reason=None)
        stats = replace(chunk.stats)
        for entries in audit.entries(pair.expert, stats):
            for place, entry in entries.items():
                tokens[place] = _token_of(tokens[place], entry, pair.vocabulary)
            yield None
        yield replace(chunk, tokens=(), stats=stats, audited=tuple(tokens))


def _route(
    pair: LoadedPair, ids: list[int], settings: Settings, route: Route, seed: int, shaper: Shaper, audit: Audit | None, cold: bool
) -> Iterator[Chunk | None]:
    """The drafter's whole answer, or, where its score is too low, the expert's; its statistics then tell of the drafter too."""
    chunks: list[Chunk] = []
    signals: list[Signals] = []
    drafting = replace(settings, block_size=settings.block_size or UNCHECKED_BLOCK)
    for chunk, block in _decode(pair, ids, drafting, Never(), seed, shaper, audit, cold):
        chunks.append(chunk)
        signals.append(Signals.of(chunk.token_ids, block.draft.rows))
        yield None
    score = route.score(Signals.join(signals))
    wasted = chunks[-1].stats
    if score >= route.threshold:
        for chunk in chunks:  # nothing was to be seen before the whole answer was there
            stats = replace(chunk.stats, wall_s=wasted.wall_s, ttft_s=wasted.wall_s)
            yield replace(chunk, stats=stats, rule=route, confidence=score)
        return
    if audit is not None:
        audit.clear()
    alone = replace(settings, block_size=0)
    for chunk, _ in _decode(pair, ids, alone, Strict(), seed, shaper, None, cold):
        stats = replace(
            chunk.stats,
            drafter_calls=wasted.drafter_calls,
            draft_s=wasted.draft_s,
            verify_s=wasted.verify_s + chunk.stats.verify_s,
            wall_s=wasted.wall_s + chunk.stats.wall_s,
            ttft_s=wasted.wall_s + chunk.stats.ttft_s,
        )
        yield replace(chunk, stats=stats, rule=route, confidence=score)


def roll_back_to_prefix(session: Session, ids: list[int], *, cold: bool = False) -> int:
    """Keep what the session holds of ``ids``, all but the last, which must be evaluated anew. Returns how much needs no reading again.

    cold: keep only what an empty cache would come to hold too, to the bit, so that the rows do not depend on earlier calls.
    """
    wait_for(session)
    shared = shared_prefix_length(session.tokens, ids[:-1])
    if cold and isinstance(session, LlamaSession):
        shared = session.aligned(shared)
    session.roll_back(shared)
    return shared - (session.missing if isinstance(session, LlamaSession) else 0)


def _chunk(pair: LoadedPair, block: Block, text: TextStream, stats: Stats, rule: Rule, seed: int) -> Chunk:
    verdict = block.verdict
    pieces = text.pieces[len(text.pieces) - len(verdict.token_ids) :]
    tokens = [Token(*fields) for fields in zip(verdict.token_ids, pieces, verdict.origins)]
    if verdict.dropped_ids:
        dropped = b"".join(map(pair.tokenizer.piece, verdict.dropped_ids))
        tokens[-1] = tokens[-1]._replace(dropped=dropped.decode(errors="replace"))
    if verdict.entries:
        tokens = [_token_of(token, entry, pair.vocabulary) for token, entry in zip(tokens, verdict.entries)]
    return Chunk(tuple(tokens), block.finish_reason, replace(stats), rule, seed)


def _token_of(token: Token, entry: Entry, vocabulary: Vocabulary) -> Token:
    return token._replace(
        tv=entry.tv,
        expert_logprob=entry.expert_logprob,
        drafter_logprob=entry.drafter_logprob,
        logprobs=_name_ids(entry.logprobs, vocabulary),
        expert_logprobs=_name_ids(entry.expert, vocabulary),
        drafter_logprobs=_name_ids(entry.drafter, vocabulary),
    )


def _name_ids(distribution: Distribution | None, vocabulary: Vocabulary) -> Logprobs | None:
    if distribution is None:
        return None
    pieces = [(token, vocabulary.pieces[token], logprob) for token, logprob in distribution.top]
    top = (Candidate(token, piece.decode(errors="replace"), piece, logprob) for token, piece, logprob in pieces)
    return Logprobs(distribution.logprob, tuple(top))
