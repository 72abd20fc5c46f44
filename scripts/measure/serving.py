"""Measure what several requests at once gain over one at a time: tokens per second, and whether the texts are the same.

    python scripts/measure/serving.py [--pair FOLDER] [--clients 4] [--requests 8] [--max-tokens 96] [--rules strict token_v3:0.3] [--json]

The same requests go to the same engine twice, at temperature 0: one after the other, then from all clients at once. A client asks again
when it has its answer. The default is the bundled pair, which is too small for batches to pay; scripts/measure/scale_pair.py writes one
at the cost of a large one. Where a text differs, the probabilities of the two tokens are printed: batches of other sizes round
differently, so two nearly equal tokens may change places. The last lines show what batches cost by the profile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import speccascade_local as sc
from speccascade_local.runtime.reply import Reply
from speccascade_local.runtime.settings import Settings
from speccascade_local.server.engine import Engine

QUESTIONS = Path(sc.__file__).parent / "demo" / "heldout.jsonl"
BATCHES = (1, 2, 4, 5, 8, 12, 16, 20, 32)


def questions(count: int) -> list[str]:
    """The last ones, which are short and have the longest answers."""
    return [json.loads(line)["prompt"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[-count:]]


def asked(runtime: sc.Runtime, prompts: Sequence[list[int]], settings: Settings, clients: int) -> tuple[list[Reply], float]:
    """All replies, and how many seconds all of them took together. Nothing is cached when it begins."""
    runtime.reset()
    with Engine({"pair": runtime}, slots=clients) as engine, ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        replies = list(pool.map(lambda prompt: engine.submit("pair", prompt, settings).reply(), prompts))
    return replies, time.perf_counter() - begun


def parting(alone: Reply, together: Reply) -> list[float] | None:
    """Probabilities of the best two tokens, alone, where the two texts part; None where they do not."""
    for one, other in zip(alone.tokens, together.tokens):
        if one.id != other.id:
            return [candidate.logprob for candidate in one.expert_logprobs.top] if one.expert_logprobs else []
    return None


def measured(runtime: sc.Runtime, prompts: Sequence[list[int]], rule: str, options: argparse.Namespace) -> dict[str, Any]:
    settings = Settings(rule=rule, max_tokens=options.max_tokens, seed=0, block_size=options.block_size, logprobs=2, model_logprobs=True)
    alone, alone_s = asked(runtime, prompts, settings, 1)
    together, together_s = asked(runtime, prompts, settings, options.clients)
    partings = [parting(*each) for each in zip(alone, together)]
    rates = [sum(len(reply.tokens) for reply in replies) / seconds for replies, seconds in ((alone, alone_s), (together, together_s))]
    return {
        "rule": rule,
        "alone_tokens_per_s": rates[0],
        "together_tokens_per_s": rates[1],
        "gain": rates[1] / rates[0],
        "equal_texts": sum(each is None for each in partings),
        "texts": len(prompts),
        "log_probabilities_where_they_part": [each for each in partings if each is not None],
        "drafted_per_block": sum(reply.stats.drafted for reply in alone) / sum(reply.stats.blocks for reply in alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, help="a folder with drafter.gguf and expert.gguf")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--block-size", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--rules", nargs="+", default=["strict", "token_v3:0.3"])
    parser.add_argument("--json", action="store_true", help="one line of JSON for each rule")
    options = parser.parse_args()
    files = {role: options.pair / f"{role}.gguf" for role in ("drafter", "expert")} if options.pair else {}
    with sc.load(**files, timelines=options.clients) as runtime:
        profile = runtime.profile()
        prompts = [runtime.chat_ids([{"role": "user", "content": question}]) for question in questions(options.requests)]
        asked(runtime, prompts[:1], Settings(max_tokens=8, seed=0), 1)
        for rule in options.rules:
            found = measured(runtime, prompts, rule, options)
            print(json.dumps(found) if options.json else "  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    for role, speed in (("expert", profile.expert), ("drafter", profile.drafter)):
        print(f"{role}: " + ", ".join(f"v({n}) {1e3 * speed.batch_s(n, 64):.1f} ms" for n in BATCHES))


if __name__ == "__main__":
    main()
