"""The server: several people's requests to loaded pairs, over the protocol that desktop apps, editors and chat clients speak.

Needs the extra ``serve``, but for the engine, which decides who is answered when.
"""
