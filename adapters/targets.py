"""Which modules of a model adapters can land on. Pure data: knows shapes and names, no tensor and no model class."""

from dataclasses import dataclass
from enum import StrEnum


class TargetKind(StrEnum):
    LINEAR = "linear"
    EMBEDDING = "embedding"  # of token ids: it has a token for each input
    HEAD = "head"  # linear, with an output for each token


@dataclass(frozen=True, slots=True)
class TargetModule:
    """One module as PEFT names it, and where its output stands inside the model's fused projection.

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
    tied_to: str | None = None  # the module whose weight it uses
