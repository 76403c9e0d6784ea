"""The command `blora`: arguments, printing, exit codes.

Owns the environment and the terminal. Must not decide anything that a library user would miss.
"""
