"""What only a GPU needs: its device, copies beside the step, what the arena may fill, graphs. Imports without one.

Owns the only use of torch.cuda and FlashInfer. Must not know how requests are scheduled.
"""
