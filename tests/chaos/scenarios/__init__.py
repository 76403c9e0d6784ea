"""The scenarios. Importing them registers their gates, in the order of the page."""

import importlib

NAMES = (
    "killed_clients",
    "deaths",
)

for name in NAMES:
    importlib.import_module(f".{name}", __package__)
