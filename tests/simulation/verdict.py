"""Verdict: what no call of a simulation may have come to without a reason, and what names may have meant."""

from collections.abc import Iterable, Mapping, Sequence

from simulation.client import Call, Generation
from simulation.names import NameHistory
from simulation.operations import Operation
from simulation.world import World

from blora.engine import AdapterInfo
from blora.engine.errors import EngineUnavailable


def unfounded(call: Call, script: Sequence[Operation], world: World, ending_at: float) -> list[str]:
    """Ends of a call for which nothing was the reason."""
    kinds = {operation.kind for operation in script}
    is_over = call.ended >= ending_at
    found = []
    if isinstance(call.outcome, EngineUnavailable) and not (is_over or world.was_given_up):
        found.append(f"call {call.number} was refused: {call.outcome}")
    if isinstance(call, Generation):
        for sample in call.samples.values():
            is_abort, is_error = sample.finish_reason == "abort", sample.finish_reason == "error"
            if is_abort and not (is_over or {"abort", "unload"} & kinds):
                found.append(f"{call.label} was aborted by nobody")
            if is_error and not (
                {"fail_steps", "fail_copies", "break_engine"} & kinds or "pinned" in str(sample.error)
            ):
                found.append(f"{call.label} failed for nothing: {sample.error}")
    return found


def history(calls: Iterable[Call], loaded: Mapping[str, str], world: World) -> NameHistory:
    """loaded: the folder of each name that is loaded from the start."""
    names = NameHistory()
    for name, folder in loaded.items():
        names.note(name, 0.0, 0.0, world.digests_between(folder, 0.0, 0.0))
    for call in calls:
        name, ok = call.values.get("name", ""), isinstance(call.outcome, AdapterInfo)
        end = call.ended if ok else float("inf")
        if call.kind == "load":
            folder = call.values["folder"]
            names.note(name, call.started, end, world.digests_between(folder, call.started, call.ended))
        elif call.kind == "upload":
            names.note(name, call.started, end, {call.values["digest"]})
        elif call.kind == "unload" and ok:
            names.note(name, call.started, end, ())
        elif call.kind == "activate":
            names.note(name, call.started, float("inf"), world.all_digests())
    return names
