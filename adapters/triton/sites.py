"""Sites: a model's fused projections as the kernels read them, the same for every adapter and every step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..layout import PIECE_WIDTH
from ..targets import TargetKind, TargetModule

SPLIT_PIECES = 4  # the fewest pieces of a split of the inputs
MAX_SPLITS = 16
WIDEST_ALIGNMENT = 16  # columns


@dataclass(frozen=True, slots=True)
class Site:
    in_features: int
    out_features: int  # of all modules together
    first_module: int  # its index among the modules of all sites
    num_modules: int
    panels: Tensor  # [num_panels, 5] int32: see kernels.py
    alignment: int  # every module's first column and width are multiples of it
    split_pieces: int  # pieces of a split, the last split excepted
    num_splits: int  # of the inputs; it depends on the number of inputs only


@dataclass(frozen=True, slots=True)
class Sites:
    """The modules that LoRA can change, by site, without the embedding."""

    by_site: Mapping[int, Site]
    modules: Mapping[tuple[int, int], int]  # (site, first column) -> index among the modules of all sites

    @property
    def num_modules(self) -> int:
        return len(self.modules)


def lay_out_sites(targets: Iterable[TargetModule], device: torch.device) -> Sites:
    modules = sorted(
        (target for target in targets if target.kind not in (TargetKind.EMBEDDING, TargetKind.NORM)),
        key=lambda target: (target.site, target.offset),
    )
    by_site: dict[int, Site] = {}
    first = 0
    for site, group in groupby(modules, key=lambda target: target.site):
        members = list(group)
        by_site[site] = _lay_out(members, first, device)
        first += len(members)
    return Sites(by_site, {(target.site, target.offset): index for index, target in enumerate(modules)})


def _lay_out(members: list[TargetModule], first: int, device: torch.device) -> Site:
    panels = [
        (module, panel, -(-target.out_features // PIECE_WIDTH), target.offset + panel * PIECE_WIDTH, width)
        for module, target in enumerate(members)
        for panel, width in enumerate(_panel_widths(target.out_features))
    ]
    num_pieces = -(-members[0].in_features // PIECE_WIDTH)
    split_pieces = max(SPLIT_PIECES, -(-num_pieces // MAX_SPLITS))
    return Site(
        in_features=members[0].in_features,
        out_features=members[-1].offset + members[-1].out_features,
        first_module=first,
        num_modules=len(members),
        panels=torch.from_numpy(np.array(panels, np.int32)).to(device),
        alignment=_alignment(members),
        split_pieces=split_pieces,
        num_splits=-(-num_pieces // split_pieces),
    )


def _panel_widths(out_features: int) -> list[int]:
    return [min(PIECE_WIDTH, out_features - first) for first in range(0, out_features, PIECE_WIDTH)]


def _alignment(members: list[TargetModule]) -> int:
    """The alignment that all modules share; with a wide one, the kernel loads neighbouring columns at once."""
    is_aligned = all(
        target.offset % WIDEST_ALIGNMENT == 0 and target.out_features % WIDEST_ALIGNMENT == 0 for target in members
    )
    return WIDEST_ALIGNMENT if is_aligned else 1
