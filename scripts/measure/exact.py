"""Count the answers in which strict at temperature 0 differs from the expert alone, loaded as usual and with exact=True.

    python scripts/measure/exact.py --drafter DRAFTER.gguf --expert EXPERT.gguf --answers 200 --tokens 300 | tee docs/results/exact.txt

No answer ends before --tokens. Loads the pair twice, one after the other. The seconds are those of one run and include other load.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import speccascade_local as sc
from speccascade_local.bench.questions import choose_questions
from speccascade_local.bench.rows import commit
from speccascade_local.bench.run import prompts_of
from speccascade_local.llama.backend import llama_cpp_version
from speccascade_local.machine.hardware import cpu_name
from speccascade_local.tokens.prompt import Prompt, shared_prefix_length


def measured(runtime: sc.Runtime, prompts: list[Prompt], tokens: int, block_size: int) -> list[str]:
    """One line of the table: how many answers parted, where, and the seconds of both ways."""
    parted: list[int] = []
    alone_s = strict_s = 0.0
    for prompt in prompts:
        begun = time.perf_counter()
        alone = runtime.generate(prompt, block_size=0, max_tokens=tokens, ignore_eos=True).token_ids
        between = time.perf_counter()
        strict = runtime.generate(prompt, rule="strict", block_size=block_size, max_tokens=tokens, ignore_eos=True).token_ids
        alone_s, strict_s = alone_s + between - begun, strict_s + time.perf_counter() - between
        if alone != strict:
            parted.append(shared_prefix_length(alone, strict))
    where = f"{statistics.median(parted):g}" if parted else "–"
    return [f"{len(prompts) - len(parted)} of {len(prompts)}", where, f"{alone_s:.0f}", f"{strict_s:.0f}"]


def asked(runtime: sc.Runtime, questions: Path | None) -> list[Prompt]:
    """The questions as prompts; 300 random ones of up to 300 ids for a model of ids without text."""
    if runtime.models["expert"].tokenizer.has_text:
        return prompts_of(runtime, choose_questions(questions, None))
    rng = np.random.default_rng(0)
    return [rng.integers(0, runtime.n_vocab, int(length)).tolist() for length in rng.integers(2, 300, 300)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--expert", type=Path, required=True)
    parser.add_argument("--questions", type=Path, help="as speccascade bench reads them; default: the built-in ones")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(f"# python scripts/measure/exact.py {' '.join(sys.argv[1:])}")
    print(f"# {given.drafter.name} and {given.expert.name}, temperature 0, blocks of {given.block_size}")
    print(f"# {cpu_name()}, {given.threads} thread(s), llama-cpp-python {llama_cpp_version()}, commit {commit()}")
    print("| loaded | equal texts | parts at token (median) | expert alone, s | strict, s |")
    print("|---|---|---|---|---|")
    for exact in (True, False):
        with sc.load(
            drafter=given.drafter, expert=given.expert, n_ctx=1024, n_threads=given.threads, exact=exact, profile=False
        ) as runtime:
            prompts = asked(runtime, given.questions)[: given.answers]
            line = measured(runtime, prompts, given.tokens, given.block_size)
        print(f"| {'exact' if exact else 'as usual'} | {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
