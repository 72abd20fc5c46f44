"""Settings in, reply out: load, runtime, conversation, and their asynchronous form."""
