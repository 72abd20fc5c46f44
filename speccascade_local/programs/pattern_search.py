"""The child process of bench/graders.py: searches patterns in a text. Python's search may take exponential time and cannot be stopped.

Input, a line of JSON each: ``{"patterns": [...], "text": ...}``. Output: ``{"found": true}`` where any pattern is found, else
``{"found": false}``. It imports nothing of this package, so that it starts quickly.
"""

from __future__ import annotations

import json
import re
import sys

if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        found = any(re.search(pattern, request["text"], re.MULTILINE) for pattern in request["patterns"])
        print(json.dumps({"found": found}), flush=True)
