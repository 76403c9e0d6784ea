"""How options are handed in: vLLM's names for them, what each means here, and the flags of the command line.

Knows which options there are. What a value of one does is the configuration's matter.
"""
