"""Version 1 of the gRPC API: the .proto files and the stubs that `python proto/generate.py` makes of them.

Owns the services and messages. Must not be changed in ways that break clients of this version.
"""
