"""A program of its own: whether a pattern is found in a text. Python's search may take exponential time and cannot be ended from within.

Reads ``{"patterns": [...], "text": ...}`` from stdin and writes whether any of them is found, ``true`` or ``false``. Imports nothing of
this package, so that it starts quickly, and knows nothing of who asks (graders.py).
"""

from __future__ import annotations

import json
import re
import sys

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(any(re.search(pattern, asked["text"], re.MULTILINE) for pattern in asked["patterns"]), sys.stdout)
