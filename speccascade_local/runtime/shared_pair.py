"""A loaded pair for several replies at once: further timelines over the same models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from ..llama.session import LlamaSession
from .answer import LoadedPair
from .shared_batches import Participant, SharedBatches, SharedSession

#: From this overlap on, two models compute faster one after the other.
_COMPETING = 0.5


class SharedPair:
    """Room for ``count`` replies, each with a participant and a pair of its own for :func:`~speccascade_local.runtime.answer.answer`.

    The profile of ``pair`` must be known. The first reply uses ``sessions``, the pair's own by role. Raises SessionError where a context
    has too few timelines.
    """

    def __init__(self, pair: LoadedPair, sessions: Mapping[str, LlamaSession], count: int) -> None:
        assert pair.profile is not None
        speeds = {"drafter": pair.profile.drafter, "expert": pair.profile.expert}
        seconds = {session.context: speeds[role].batch_s for role, session in sessions.items()}
        self.batches = SharedBatches(seconds, one_at_a_time=pair.profile.overlap > _COMPETING)
        self.pairs: dict[Participant, LoadedPair] = {}
        with ExitStack() as opened:
            for _ in range(count):
                participant = Participant()
                timelines = {role: self._session(participant, own, opened) for role, own in sessions.items()}
                self.pairs[participant] = pair.with_sessions(timelines)
            self._opened = opened.pop_all()

    def _session(self, participant: Participant, own: LlamaSession, opened: ExitStack) -> SharedSession:
        first = not self.pairs
        session = SharedSession(own.context, self.batches, participant, n_vocab=own.n_vocab, timeline=own.timeline if first else None)
        if not first:
            opened.callback(session.close)
        return session

    def close(self) -> None:
        """Free all timelines except the pair's own."""
        self._opened.close()
