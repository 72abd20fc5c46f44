"""The server: a loaded pair behind the protocol that desktop apps, editors and chat clients speak.

Needs the extra ``serve``; nothing outside this folder and the verb ``serve`` imports from it.
"""
