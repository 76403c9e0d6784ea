"""Datasets: where prompts and the lengths of answers come from. A dataset is a function of its options and a seed; it
knows neither arrivals nor servers."""

from .demo_tasks import DemoTasks
from .files import Custom, ShareGPT, TimedTrace
from .random_tokens import RandomTokens
from .sample import Dataset, Sample
from .shared_prefix import SharedPrefix

__all__ = ["Custom", "Dataset", "DemoTasks", "RandomTokens", "Sample", "ShareGPT", "SharedPrefix", "TimedTrace"]
