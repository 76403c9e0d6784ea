"""Brings adapters in, keeps them and lets them go.

Owns adapters' names, versions, sources, images and life. Must not know the forward pass.
"""
