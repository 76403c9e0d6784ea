"""Imported by every Python process of a server that a scenario has started: plants what the scenario asks for."""

import importlib
import os

if os.environ.get("CHAOS_PLANTED"):
    importlib.import_module(os.environ["CHAOS_PLANTED"])
