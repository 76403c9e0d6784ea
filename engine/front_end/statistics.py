"""Statistics: everything that a front end and its engine tell of themselves at a time, for metrics and load reports.

A picture that is read at once: the observations in it go on growing. Knows no exporter.
"""

from dataclasses import dataclass
from itertools import islice

from ..config import EngineConfig
from ..outputs import EngineInfo
from .front_end import FrontEnd
from .observations import Observations
from .outcomes import Outcomes

MOST_LISTED = 64  # names in a list: thousands would make a label of kilobytes


@dataclass(frozen=True, slots=True)
class AdapterPlaces:
    num_known: int  # names
    num_host: int  # contents in host memory
    num_resident: int  # contents in the arena
    resident: tuple[str, ...]  # names of these, MOST_LISTED at most
    waiting: tuple[str, ...]  # names in requests that have no memory yet, MOST_LISTED at most
    num_fitting: int  # adapters of the largest resident size that the arena holds


@dataclass(frozen=True, slots=True)
class QueuePlaces:
    num_unfinished: int  # samples
    num_queued_tokens: int  # of prompts that wait for their first token
    num_expired: int  # requests ended by their deadline


@dataclass(frozen=True, slots=True)
class Deaths:
    """Of engines; each was replaced."""

    num_deaths: int
    num_crashes: int
    num_stalls: int
    num_resumed: int  # samples that another engine has gone on with
    num_requests_set_aside: int
    num_adapters_set_aside: int


@dataclass(frozen=True, slots=True)
class Statistics:
    model: str
    max_model_len: int
    block_size: int
    num_pages: int
    is_prefix_caching: bool
    is_serving: bool
    info: EngineInfo | None  # None while there is no engine, or it gives no answer
    observations: Observations
    outcomes: Outcomes
    queue: QueuePlaces
    adapters: AdapterPlaces
    deaths: Deaths


def statistics_of(
    config: EngineConfig, front_end: FrontEnd, info: EngineInfo | None, is_serving: bool, num_resumed: int
) -> Statistics:
    facts, suspects, queue = front_end.facts, front_end.suspects, front_end.admission.facts
    return Statistics(
        model=config.model,
        max_model_len=facts.max_model_len,
        block_size=facts.block_size,
        num_pages=facts.num_pages,
        is_prefix_caching=config.enable_prefix_caching,
        is_serving=is_serving,
        info=info,
        observations=front_end.observations,
        outcomes=front_end.admission.outcomes,
        queue=QueuePlaces(front_end.outputs.num_unfinished, queue.num_queued_tokens, queue.num_expired),
        adapters=_places(front_end),
        deaths=Deaths(
            num_deaths=suspects.num_deaths,
            num_crashes=suspects.num_crashes,
            num_stalls=suspects.num_stalls,
            num_resumed=num_resumed,
            num_requests_set_aside=suspects.num_requests_set_aside,
            num_adapters_set_aside=suspects.num_adapters_set_aside,
        ),
    )


def _places(front_end: FrontEnd) -> AdapterPlaces:
    catalog = front_end.adapters
    resident = [digest for digest in catalog.resident if catalog.aliases(digest)]
    names = (name for digest in resident for name, _ in catalog.aliases(digest))
    largest = max((catalog.table_of(digest).num_pages for digest in resident), default=1)
    unbegun = (user for user in front_end.outputs.users() if not user.metrics.scheduled_ts)
    waiting = dict.fromkeys(name for user in unbegun for name, _ in user.adapters)
    return AdapterPlaces(
        num_known=catalog.num_names,
        num_host=front_end.ledger.num_images,
        num_resident=len(resident),
        resident=tuple(dict.fromkeys(islice(names, MOST_LISTED))),
        waiting=tuple(islice(waiting, MOST_LISTED)),
        num_fitting=front_end.facts.num_pages // max(largest, 1),
    )
