"""Whether this installation works on this machine, and the command that mends it.

bandwidth.py      how fast memory is
installation.py   what is installed, and folders
trial.py          the bundled pair, tried in a child process
inspection.py     all facts in one object
diagnosis.py      what is wrong by them
redaction.py      what strangers are told
"""
