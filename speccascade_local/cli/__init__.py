"""The command line: verbs, their options, and what a terminal shows; no algorithms."""

from .app import main

__all__ = ["main"]
