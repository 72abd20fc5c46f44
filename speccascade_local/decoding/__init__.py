"""The loop: draft, score, settle, commit; how long drafts are, and the account of every token."""
