"""A process that is given damaged files one after the other, and says of each how it took it; it may die of one.

    python mutant_reader.py rehearse   as the child of a rehearsal takes them
    python mutant_reader.py use        as the user's own process does: loaded whole, evaluated, its vocabulary read

Reads paths from stdin, and writes a line for each: ok, or refused and why.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from speccascade_local.common.errors import SpeccascadeError
from speccascade_local.llama import backend
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.session import LlamaSession
from speccascade_local.models.placement import Placement
from speccascade_local.programs.dry_run import LoadTrial, LogLines

KEPT = []


def rehearse(path: Path) -> None:
    heard = LogLines()
    backend._listeners[:] = [heard.take]
    KEPT.append(LoadTrial(path, Placement(), heard))
    KEPT[-1].facts(64, 8)


def use(path: Path) -> None:
    with closing(LlamaModel(path)) as model, closing(LlamaContext(model, n_ctx=64, n_threads=1)) as context:
        session = LlamaSession(context)
        session.extend([1, 2, 3], 2)
        session.roll_back(1)
        session.extend([2], 1)
        tokenizer = model.tokenizer
        if tokenizer.has_text:
            tokenizer.tokenize("hello the world", add_special=True, parse_special=True)
            [tokenizer.piece(token) for token in range(model.n_vocab)]
        _ = tokenizer.special_texts, model.chat_template, model.description


if __name__ == "__main__":
    take = {"rehearse": rehearse, "use": use}[sys.argv[1]]
    for line in sys.stdin:
        try:
            take(Path(line.strip()))
            print("ok", flush=True)
        except SpeccascadeError as error:
            print("refused", " ".join(str(error).split()), flush=True)
