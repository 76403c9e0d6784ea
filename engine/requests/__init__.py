"""The unfinished requests of the two engines: who reads them, and their way to the engine and back.

Decides nothing about a request, which is the front end's; knows neither the phases of an engine's life nor a wire.
"""
