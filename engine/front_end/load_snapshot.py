"""Load snapshot: puts together what routers, and `blora top`, want to know of an engine's load."""

from ..outputs import EngineLoad, LoadSnapshot
from .front_end import FrontEnd


def load_snapshot(front_end: FrontEnd, load: EngineLoad | None, *, is_serving: bool) -> LoadSnapshot:
    """load: None while there is no engine."""
    catalog, queue, suspects = front_end.adapters, front_end.admission.facts, front_end.suspects
    counts = None if load is None else load.counts
    resident = [f"{name}@{number}" for digest in catalog.resident for name, number in catalog.aliases(digest)]
    return LoadSnapshot(
        is_serving=is_serving,
        num_running=0 if load is None else load.num_running,
        num_waiting=front_end.outputs.num_unfinished if load is None else load.num_waiting,
        num_queued_tokens=queue.num_queued_tokens,
        num_refused=queue.num_refused,
        num_pages=front_end.facts.num_pages,
        num_free_pages=0 if load is None else load.num_free_pages,
        resident_adapters=tuple(sorted(resident)),
        num_requests=front_end.usage.num_requests,
        num_generated_tokens=front_end.observations.num_answer_tokens,
        num_prompt_tokens=counts.num_prompt_tokens if counts else 0,
        num_cached_tokens=counts.num_cached_tokens if counts else 0,
        num_preemptions=counts.num_preemptions if counts else 0,
        num_engine_deaths=suspects.num_deaths,
        num_crashes=suspects.num_crashes,
    )
