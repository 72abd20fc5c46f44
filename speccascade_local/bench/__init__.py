"""Measure pairs on the user's own machine and prompts.

questions.py   what is asked: the built-in families, the user's JSONL, Spec-Bench
graders.py     how good an answer is
grid.py        the arms: the ways of answering that are compared
run.py         asks, and measures what each answer costs
rows.py        the measured rows on disk
intervals.py   comparisons with their uncertainty
summary.py     the figures of each arm
export.py, charts.py, report.py   show them
goal.py, tune.py   the arm that gives what a user asks for
calibrate.py   when the drafter can be trusted
"""
