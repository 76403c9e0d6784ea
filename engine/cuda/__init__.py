"""What only a GPU needs: its device, copies beside the step, what the arena may fill, graphs. Imports without one."""
