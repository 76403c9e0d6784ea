"""Telemetry: shows what an engine tells of itself, as Prometheus metrics, lines of a log and a live view.

Only reads: counts live as plain data in the front end. Must not know a request's text.
"""
