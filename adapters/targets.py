"""TargetModule: a module that adapters can change. Pure data: knows shapes and names, no tensor and no model class."""

from dataclasses import dataclass
from enum import StrEnum


class TargetKind(StrEnum):
    LINEAR = "linear"
    EMBEDDING = "embedding"  # of token ids: each input is a token
    HEAD = "head"  # linear: each output is a token
    NORM = "norm"  # a vector of weights, which an adapter replaces as a whole


TABLES = (TargetKind.EMBEDDING, TargetKind.HEAD)  # kinds with a row for each token


@dataclass(frozen=True, slots=True)
class TargetModule:
    """One module as PEFT names it, and the place of its output inside the model's fused projection.

    A model computes some projections together (q, k and v; gate and up). Such a fused projection is a *site*; each of
    its modules is a *slice* of the site's output columns.
    """

    name: str  # dotted path in the Hugging Face model, such as "model.layers.0.self_attn.q_proj"
    in_features: int
    out_features: int
    site: int  # index of the fused projection
    offset: int  # first output column of this module in the site's output
    has_bias: bool = False
    kind: TargetKind = TargetKind.LINEAR
    tied_to: str | None = None  # name of the module whose weight this one uses
