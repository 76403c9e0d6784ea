"""OpenAI's API over HTTP. Each route converts, asks the engine and converts back; policy lives in the engine.

Starlette finds the route and uvicorn speaks HTTP, in the event loop of the gRPC server, with its life and its limits.
"""
