"""A program of its own: whether a pattern is found in a text. Python's search may take exponential time and cannot be ended from within.

Reads ``{"patterns": [...], "text": ...}`` from stdin, a line each, and answers ``{"found": true}`` where any of the patterns is found, else
``{"found": false}``. Imports nothing of this package, so that it starts quickly, and knows nothing of who asks (graders.py).
"""

from __future__ import annotations

import json
import re
import sys

if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        found = any(re.search(pattern, asked["text"], re.MULTILINE) for pattern in asked["patterns"])
        print(json.dumps({"found": found}), flush=True)
