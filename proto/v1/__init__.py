"""Version 1 of the gRPC API: the stubs that `python proto/generate.py` makes of the .proto files in schema/.

Owns the services and messages. Must not be changed in ways that break clients of this version.
"""
