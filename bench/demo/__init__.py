"""The demo: four tasks with adapters that were trained for them, and a program that asks all of them at once. Tasks
make and check their data without torch; `run.py` and `train_adapters.py` are started as files."""
