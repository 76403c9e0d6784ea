"""The dataset that the flags name."""

import argparse
from pathlib import Path

from ..load.datasets import Custom, Dataset, DemoTasks, RandomTokens, SharedPrefix, ShareGPT, TimedTrace
from .served import Served


def dataset_of(args: argparse.Namespace, served: Served) -> Dataset:
    """Raises ValueError for a file that is not named, and where the size of the vocabulary is not known."""
    match args.dataset_name:
        case "sharegpt":
            return ShareGPT(path=_path(args), output_len=args.sharegpt_output_len)
        case "custom":
            return Custom(path=_path(args), output_len=args.custom_output_len)
        case "demo":
            return DemoTasks(is_chat=args.backend == "openai-chat")
        case "timed_trace":
            return TimedTrace(path=_path(args), vocab_size=_vocab_size(args, served), speed=args.trace_speed)
        case "prefix_repetition":
            return SharedPrefix(
                vocab_size=_vocab_size(args, served),
                prefix_len=args.prefix_repetition_prefix_len,
                suffix_len=args.prefix_repetition_suffix_len,
                num_prefixes=args.prefix_repetition_num_prefixes,
                output_len=args.prefix_repetition_output_len,
            )
    return RandomTokens(
        vocab_size=_vocab_size(args, served),
        input_len=args.random_input_len,
        output_len=args.random_output_len,
        range_ratio=args.random_range_ratio,
        prefix_len=args.random_prefix_len,
    )


def _path(args: argparse.Namespace) -> Path:
    if args.dataset_path is None:
        raise ValueError(f"--dataset-name {args.dataset_name} needs --dataset-path FILE")
    return Path(args.dataset_path)


def _vocab_size(args: argparse.Namespace, served: Served) -> int:
    return args.vocab_size or served.vocab_size()
