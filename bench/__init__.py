"""Programs that measure blora: `blora bench`.

They may import everything; only tests import them.
"""
