"""Outcomes: predictions of admission beside what came of them. Plain data."""

from dataclasses import dataclass

from ..metrics import Tally
from .bounds import FIRST_TOKEN_BOUNDS, RATIO_BOUNDS


@dataclass(frozen=True, slots=True)
class Outcomes:
    """First tokens whose time was predicted when the request came."""

    predicted: Tally  # seconds
    measured: Tally  # seconds
    ratio: Tally  # measured / predicted

    @classmethod
    def none(cls) -> "Outcomes":
        return cls(Tally(FIRST_TOKEN_BOUNDS), Tally(FIRST_TOKEN_BOUNDS), Tally(RATIO_BOUNDS))

    def note(self, predicted: float, measured: float) -> None:
        self.predicted.note(predicted)
        self.measured.note(measured)
        self.ratio.note(measured / max(predicted, 1e-6))
