"""Progress: one line that tells what has become of the requests so far, on a terminal only."""

import sys
from typing import Self

from tqdm import tqdm

from ..load.counts import Counts


class Progress:
    """Use as `with Progress(number of requests) as progress`, and give `progress.show` to `send`."""

    def __init__(self, num_requests: int, is_shown: bool = True) -> None:
        self._bar = tqdm(total=num_requests, unit="req", disable=not (is_shown and sys.stderr.isatty()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, seconds: float, counts: Counts) -> None:
        self._bar.n = counts.finished + counts.failed
        rate = counts.tokens / seconds if seconds > 0 else 0.0
        self._bar.set_postfix_str(
            f"{counts.running} running, {counts.failed} failed, {rate:.0f} tokens/s", refresh=True
        )
