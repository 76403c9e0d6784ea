"""The samples of the dataset that the flags name."""

import argparse
from pathlib import Path

from ..load.datasets import Custom, Dataset, DemoTasks, RandomTokens, Sample, SharedPrefix, ShareGPT, TimedTrace
from ..load.slora import SLoRA
from .served import Served


def samples_of(args: argparse.Namespace, served: Served) -> list[Sample]:
    """Raises ValueError for a file that is not named, and where the size of the vocabulary is not known."""
    if args.dataset_name == "slora":
        shape = SLoRA(
            num_adapters=len(args.lora_modules),
            alpha=args.slora_alpha,
            req_rate=args.slora_req_rate,
            cv=args.slora_cv,
            duration=args.slora_duration,
            input_range=tuple(args.slora_input_range),
            output_range=tuple(args.slora_output_range),
        )
        return shape.draw(list(args.lora_modules), _vocab_size(args, served), args.seed)
    return _dataset(args, served).draw(args.num_prompts, args.seed)


def _dataset(args: argparse.Namespace, served: Served) -> Dataset:
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
