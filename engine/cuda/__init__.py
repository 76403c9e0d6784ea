"""What only a GPU needs: its device, copies beside the step, what the arena may fill, graphs. Imports without one.

Owns the only way to a GPU and to FlashInfer. Must not know how requests are scheduled.
"""
