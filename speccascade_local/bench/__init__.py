"""The truth about a pair on the user's own machine and prompts.

    questions.py   what is asked: the built-in families, the user's JSONL, Spec-Bench
    graders.py     how good an answer is
    programs/pattern_search.py    searching patterns in it, as a program of its own
    grid.py        in which ways it is asked
    bench/run.py     asking, and what each answer cost; setup.py with what, tokens/rows.py on the disk
    bench/calibrate.py     both models alone, for calibration
    intervals.py   how sure a figure is
    summary.py     what rows say of each way; export.py, charts.py, report.py show it
    bench/tune.py      the way that gives what the user asked for
    machine/plan.py    what a pair would bring, before it is loaded

Knows nothing of terminals.
"""
