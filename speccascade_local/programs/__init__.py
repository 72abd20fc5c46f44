"""Programs that run in a child process. No module imports them; common/child_process.py starts them by name."""
