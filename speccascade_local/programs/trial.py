"""The child process of machine/trial.py: loads the bundled pair, asks it one question, and prints the answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..common.errors import SpeccascadeError
from ..machine.trial import QUESTION
from ..models import catalog
from ..runtime.load import load


def answer() -> Mapping[str, str]:
    """Return the answer, or the error. It takes at least two batches of several tokens, because some builds crash only on batches."""
    pair = catalog.bundled_pair()
    try:
        with load(drafter=pair.drafter, expert=pair.expert, rule="strict", profile=False) as runtime:
            reply = runtime.chat([{"role": "user", "content": QUESTION}], temperature=0, block_size=4, max_tokens=48)
    except SpeccascadeError as error:
        return {"answer": "", "error": str(error)}
    return {"answer": reply.text, "error": ""}


if __name__ == "__main__":
    print(json.dumps(answer()))
