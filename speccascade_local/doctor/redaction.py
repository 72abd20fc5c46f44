"""What a report tells to strangers: no home folder, user name, token or password.

Knows nothing of what the report is about.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SECRETS = re.compile(r"\bhf_\w{8,}|(?<=://)[^/\s@]+(?=@)")  # of Hugging Face; and who logs in, within an address
_SHORTEST = 6  # a shorter value may be a word of the text


def redacted(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The same with all texts in it redacted, keys of mappings too."""
    if isinstance(value, str):
        return _text(value, environment)
    if isinstance(value, Mapping):
        return {redacted(key, environment): redacted(each, environment) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(each, environment) for each in value]
    return value


def _text(text: str, environment: Mapping[str, str]) -> str:
    for name, secret in environment.items():
        if _SECRET_NAMES.search(name) and len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    text = _SECRETS.sub(HIDDEN, text)
    for home in sorted({os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}, key=len, reverse=True):
        if len(home) > 1:  # a service's may be /
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    user = _user()
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", HIDDEN, text) if user else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name
        return ""
