"""Roots: the folders below which files of adapters may lie, once all links are followed.

The hub's cache keeps a repository in two folders: `snapshots/<revision>/` holds links, and `blobs/` the files. So the
files behind a root in `snapshots` may lie in the `blobs` beside it.
"""

from collections.abc import Sequence
from pathlib import Path

Roots = Sequence[Path] | None  # None allows any place


def allows_folder(roots: Roots, real: Path) -> bool:
    """real: a path without links."""
    return roots is None or any(real.is_relative_to(root.resolve()) for root in roots)


def allows_file(roots: Roots, real: Path) -> bool:
    """real: a path without links."""
    return allows_folder(roots, real) or allows_folder([blobs for root in roots or () for blobs in _blobs(root)], real)


def _blobs(root: Path) -> list[Path]:
    """The files of the repository whose snapshots hold a root, if they do."""
    root = root.resolve()
    snapshots = next((path for path in (root, root.parent) if path.name == "snapshots"), None)
    return [] if snapshots is None else [snapshots.parent / "blobs"]
