"""A loaded pair for several replies at once: timelines beside its own ones, all over the same models.

Knows nothing of threads, turns or who asks for replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from ..decoding.profile import Speed
from ..llama.session import LlamaSession
from .answer import LoadedPair
from .shared_batches import Participant, SharedBatches, SharedSession

#: From this overlap on two models had better compute one after the other.
_COMPETING = 0.5


class SharedPair:
    """Room for ``count`` replies, each with a seat and a pair of its own for :func:`~speccascade_local.runtime.answer.answer`.

    sessions: the pair's own, by role, on which the first reply stands. Its profile must be known. Raises SessionError where a context has
    not so many timelines.
    """

    def __init__(self, pair: LoadedPair, sessions: Mapping[str, LlamaSession], count: int) -> None:
        assert pair.profile is not None
        speeds = _speeds(pair)
        seconds = {session.context: speeds[role].batch_s for role, session in sessions.items()}
        self.gathering = SharedBatches(seconds, one_at_a_time=pair.profile.overlap > _COMPETING)
        self.pairs: dict[Participant, LoadedPair] = {}
        with ExitStack() as opened:
            for _ in range(count):
                seat = Participant()
                beside = {role: self._session(seat, own, opened) for role, own in sessions.items()}
                self.pairs[seat] = pair.with_sessions(beside)
            self._opened = opened.pop_all()

    def _session(self, seat: Participant, own: LlamaSession, opened: ExitStack) -> SharedSession:
        first = not self.pairs
        session = SharedSession(own.context, self.gathering, seat, n_vocab=own.n_vocab, timeline=own.timeline if first else None)
        if not first:
            opened.callback(session.close)
        return session

    def close(self) -> None:
        """Leave the pair only its own timelines."""
        self._opened.close()


def _speeds(pair: LoadedPair) -> dict[str, Speed]:
    """What the profiles say, by role."""
    assert pair.profile is not None
    return {"drafter": pair.profile.drafter, "expert": pair.profile.expert}
