"""The child process of tokens/grammar.py: compiles grammars and makes token masks; a hostile grammar can make that endless, or crash.

Input: a line with the vocabulary, then a line per request: ``{"grammar": source}`` for a new grammar and its first mask, or ``{"keep": n,
"tokens": [...]}`` to roll back to the first n tokens, read more, and make the mask after them. After ``seconds`` of a request the process
ends, even inside one long operation. Output: masks as bits, lowest first, in base64. It imports nothing of this package.
"""

from __future__ import annotations

import base64
import faulthandler
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import llguidance

#: Enough for rules that are written character by character, over large vocabularies.
LIMITS = llguidance.LLParserLimits(step_max_items=5_000_000, step_lexer_fuel=5_000_000, verbose_errors=False)
#: llguidance recurses along references; a stack of this size lets it go deeper than its caller allows. Only the used part takes memory.
STACK_BYTES = 256 << 20


class Vocabulary:
    """What llguidance needs of a tokenizer. It never encodes: masks come from the tokens' bytes alone."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: list[bytes], ends: list[int]) -> None:
        self.tokens, self.eos_token_id = tokens, ends[0] if ends else 0

    def __call__(self, text: bytes) -> list[int]:
        """Return no ids."""
        return []


class Matcher:
    """A grammar, and the position of a text in it."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, source: str) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
        self._read = 0

    def advance(self, keep: int, tokens: list[int]) -> dict[str, Any]:
        """Roll back to the first ``keep`` tokens and read more; return how many the grammar allows, and the mask after those."""
        self._matcher.rollback(self._read - keep)
        consumed = self._matcher.try_consume_tokens(tokens)
        self._read = keep + consumed
        # On a copy: in llguidance 1.9 a matcher that has made a mask may make a wrong one after a rollback.
        copy = self._matcher.deep_copy()
        mask = base64.b64encode(copy.compute_bitmask()).decode()
        error = self._matcher.get_error() or copy.get_error()
        return {"error": error} if error else {"read": consumed, "mask": mask}


def _read_vocabulary(line: str) -> llguidance.LLTokenizer:
    vocabulary = json.loads(line)
    data, tokens, at = base64.b64decode(vocabulary["bytes"]), [], 0
    for length in vocabulary["lengths"]:
        tokens.append(data[at : at + length])
        at += length
    return llguidance.LLTokenizer(Vocabulary(tokens, vocabulary["ends"]), eos_token=vocabulary["ends"] or None)  # type: ignore[arg-type]


def answer() -> None:
    """Answer requests until stdin ends."""
    tokenizer, matcher = _read_vocabulary(sys.stdin.readline()), None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["seconds"], exit=True)  # a thread that Python's own lock cannot hold back
        begun = time.process_time()
        if "grammar" in request:
            matcher = Matcher(tokenizer, request["grammar"])
        assert matcher is not None
        reply = matcher.advance(request.get("keep", 0), request.get("tokens", []))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply | {"cpu_s": time.process_time() - begun}), flush=True)


def main() -> None:
    """Answer on a large stack; exit code 3 for any error."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            answer()
        except BaseException as error:  # panics of llguidance are no Exceptions
            failed.append(error)

    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    if failed:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
