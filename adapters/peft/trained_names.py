"""TrainedNames: a file's own names of tensors, brought to those of PEFT.

PEFT names a tensor base_model.model.<module>.<part>. A trainer that saves its own state leaves the adapter's name in
the part (lora_A.default.weight), leaves torch's wrappers in the path (_orig_mod, module), or leaves the prefix out; a
multimodal model has its language model under a path of its own. Such a name is brought to PEFT's where module and part
are certain: whatever is taken away or put in front says nothing about them. Two tensors never become one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..targets import TargetModule

PREFIX = "base_model.model."
STEM = "model."  # of the modules inside the decoder
# Wrappers of torch, Lightning and DeepSpeed around a module; none is a module of a served model.
WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
# The path to the language model in a larger one. Any other path may lead to a tower with layers of the same names.
STEMS = frozenset({"model", "base_model", "language_model", "text_model", "llm", "pretrained_model", "backbone"})
# The first words of a part, and the words that may follow the adapter's name in it.
PARTS: Mapping[str, tuple[str, ...]] = {
    "lora_A": ("weight",),
    "lora_B": ("weight", "bias"),
    "lora_embedding_A": (),
    "lora_embedding_B": (),
    "lora_magnitude_vector": ("weight",),
    "modules_to_save": ("weight", "bias"),
    "trainable_tokens_delta": (),
    "trainable_tokens_original": (),
}
OTHER_PARTS = frozenset({"base_layer", "original_module", "token_adapter", "weight", "bias"})


@dataclass(frozen=True, slots=True)
class FoundName:
    """What a name in a file means."""

    name: str  # PEFT's
    module: str  # of the model
    changes: tuple[str, ...] = ()  # what was taken away or put in front, in words
    trained_as: tuple[str, ...] = ()  # names that the module may have had in training
    adapter: str = ""  # the adapter's name in the part


@dataclass
class TrainedNames:
    """The names of one file. `in_file` has the file's name of each tensor, by PEFT's name."""

    in_file: dict[str, str] = field(default_factory=dict)
    trained_as: dict[str, tuple[str, ...]] = field(default_factory=dict)  # module -> its names in training, if others
    doubles: list[str] = field(default_factory=list)  # names that mean the same tensor as another name
    adapters: set[str] = field(default_factory=set)  # names of adapters in the parts
    _changes: Counter[str] = field(default_factory=Counter)

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed in the names, for a report."""
        return tuple(f"{change} {number} tensor names" for change, number in self._changes.items())

    def of_file(self, names: Iterable[str]) -> tuple[str, ...]:
        """Returns the file's names of PEFT's."""
        return tuple(sorted(self.in_file.get(name, name) for name in names))

    def add(self, name: str, found: FoundName) -> None:
        self.adapters.add(found.adapter)
        if self.in_file.setdefault(found.name, name) != name:
            self.doubles.append(name)
            return
        self._changes.update(found.changes)
        if found.trained_as:
            self.trained_as[found.module] = found.trained_as


def cores(names: Iterable[str]) -> dict[str, str]:
    """Returns the names by what follows the way to the language model."""
    return {name.removeprefix(STEM): name for name in names}


def find_names(names: Iterable[str], targets: Sequence[TargetModule]) -> TrainedNames:
    """Returns PEFT's name for each name of a file; a name that is not understood stays."""
    by_core = cores(target.name for target in targets)
    found = TrainedNames()
    for name in sorted(names):
        found.add(name, _find(name, by_core))
    return found


def _find(name: str, by_core: Mapping[str, str]) -> FoundName:
    words = name.split(".")
    first = next((i for i, word in enumerate(words) if word in PARTS or word in OTHER_PARTS), len(words))
    path = [word for word in words[:first] if word not in WRAPPERS]
    start = _end_of_prefix(path)
    stem, module = split_stem(path[start:], by_core)
    if module is None:
        return FoundName(name, "")
    adapter, part = _split_part(words[first:])
    changes = (
        *wrapper_changes(words[:first]),
        *([f"{'.'.join(path[: start - 2]) + '.'!r} is left out of"] if start > 2 else []),
        *([] if start else [f"{PREFIX!r} is put before"]),
        *stem_changes(stem, module),
        *([f"{'.' + adapter!r} is left out of"] if adapter else []),
    )
    raw = words[_end_of_prefix(words[:first]) : first]
    trained_as = [name for name in (".".join(raw), ".".join(path[start:])) if name != module]
    return FoundName(f"{PREFIX}{module}.{part}", module, changes, tuple(trained_as), adapter)


def _end_of_prefix(path: Sequence[str]) -> int:
    """Returns the place after the last base_model.model, or 0."""
    pairs = [i + 2 for i in range(len(path) - 1) if path[i] == "base_model" and path[i + 1] == "model"]
    return pairs[-1] if pairs else 0


def wrapper_changes(words: Iterable[str]) -> Iterator[str]:
    """Yields what takes the wrappers out of a path."""
    return (f"{word + '.'!r} is left out of" for word in words if word in WRAPPERS)


def split_stem(path: Sequence[str], by_core: Mapping[str, str]) -> tuple[Sequence[str], str | None]:
    """Splits a path into the way to the language model and a module in it: returns that way and the module's name in
    the model, or None for a module that the model lacks."""
    for length in range(len(path)):
        module = by_core.get(".".join(path[length:]))
        if module is not None:
            return path[:length], module
        if path[length] not in STEMS:
            break
    return (), None


def way_to(name: str, by_core: Mapping[str, str]) -> str:
    """Returns the way, such as "transformer.", below which a name has a module of the model; "" if it has none."""
    words = name.removeprefix(PREFIX).split(".")
    cut = next((i for i, word in enumerate(words) if word in PARTS or word in OTHER_PARTS), len(words))
    start = next((i for i in range(cut) if ".".join(words[i:cut]) in by_core), 0)
    return "".join(f"{word}." for word in words[:start])


def stem_changes(stem: Sequence[str], module: str) -> Iterator[str]:
    """Yields what makes the stem that of the model's own module."""
    left, wanted = list(stem), [STEM.rstrip(".")] if module.startswith(STEM) else []
    for word in wanted:
        if word in left:
            left.remove(word)
        else:
            yield f"{STEM!r} is put before the modules in"
    if left:
        yield f"{'.'.join(left) + '.'!r} is left out of"


def _split_part(words: Sequence[str]) -> tuple[str, str]:
    """Returns the adapter's name in a part, or "", and the part as PEFT saves it."""
    start = words[:1] == ["token_adapter"]  # stands before one of PARTS
    head, rest = list(words[: start + 1]), list(words[start + 1 :])
    if not head or head[-1] not in PARTS:
        return "", ".".join(words)
    behind = PARTS[head[-1]]
    adapter = rest.pop(0) if rest and rest[0] not in behind else ""
    if head[-1] == "lora_magnitude_vector":
        rest = [word for word in rest if word != "weight"]  # the parameter of a layer in memory, a vector in a file
    if head == ["modules_to_save"] and adapter:
        head = []  # without an adapter's name, it is a copy that PEFT never reads again
    return adapter, ".".join([*head, *rest])
