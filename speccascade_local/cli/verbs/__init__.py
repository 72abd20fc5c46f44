"""One file for each command, by its own name."""
