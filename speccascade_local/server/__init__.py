"""The server: requests of several clients to loaded pairs, over OpenAI's protocol.

All of it but the engine needs the extra ``serve``.
"""
