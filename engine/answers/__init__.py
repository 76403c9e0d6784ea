"""Divides the text of an answer into reasoning, content and calls of tools, whole or while it grows.

Pure: knows no request, no door and no model, and does not compute. Takes time in proportion to the text.
"""
