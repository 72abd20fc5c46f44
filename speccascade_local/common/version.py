"""The version of this package, as pyproject.toml and every result row give it."""

__version__ = "0.1.0"
