"""``python -m speccascade_local`` is the command ``speccascade``."""

from .cli import main

if __name__ == "__main__":
    main()
