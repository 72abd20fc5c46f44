"""Sockets, keys and limits: who may connect, for how long, and how much they may send."""
