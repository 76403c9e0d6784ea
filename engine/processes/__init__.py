"""The programs that blora starts with `python -m`: this folder is the map of its child processes.

Each file owns one process. Nothing imports them but tests and bench.
"""
