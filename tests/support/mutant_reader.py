"""A process that reads damaged files, one after the other, and may die of one.

    python mutant_reader.py dry-run   as the child process of a dry run does
    python mutant_reader.py use       as the user's process does: loads and evaluates the model, and reads its vocabulary

Input: a path per line. Output: a line for each, ``ok``, or ``refused`` and the reason.
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

TRIALS = []


def dry_run(path: Path) -> None:
    lines = LogLines()
    backend._listeners[:] = [lines.take]
    TRIALS.append(LoadTrial(path, Placement(), lines))
    TRIALS[-1].facts(64, 8)


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
    read = {"dry-run": dry_run, "use": use}[sys.argv[1]]
    for line in sys.stdin:
        try:
            read(Path(line.strip()))
            print("ok", flush=True)
        except SpeccascadeError as error:
            print("refused", " ".join(str(error).split()), flush=True)
