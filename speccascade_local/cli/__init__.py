"""The command line: verbs, their options, and how things look in a terminal; no algorithm."""

from .app import main

__all__ = ["main"]
