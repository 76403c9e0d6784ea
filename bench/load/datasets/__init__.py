"""Datasets: where prompts and the lengths of answers come from. A dataset is a function of its options and a seed; it
knows neither arrivals nor servers."""

from .random_tokens import RandomTokens
from .sample import Dataset, Sample

__all__ = ["Dataset", "RandomTokens", "Sample"]
