"""Sockets, keys and limits: who may connect, how long, and how much they may send. Reads no request."""
