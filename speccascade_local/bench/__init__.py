"""The truth about a pair on the user's own machine and prompts.

    questions.py   what is asked: the built-in families, the user's JSONL, Spec-Bench
    graders.py     how good an answer is
    intervals.py   how sure a figure is

Knows nothing of how results are shown.
"""
