"""The programs that blora starts with `python -m`: this folder is the map of its child processes.

Each file owns one process, but `background.py`, which some of them use. Only tests and bench import them.
"""
