"""Defines the gRPC API: the .proto files, the stubs generated from them, and a small client.

Owns the wire format. Must not know the engine or any other package of blora; imports only grpcio, protobuf and
googleapis-common-protos.
"""
