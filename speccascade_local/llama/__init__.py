"""Weights, contexts, rollback and devices: the only room that imports llama_cpp."""

import os

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # before llama.cpp is loaded: it starts a debugger where it aborts
