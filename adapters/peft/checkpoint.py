"""Checkpoint: a PEFT LoRA folder read once into private memory and checked against a model. numpy only, no torch.

`folder.py` finds and reads the files, `trained_names.py` understands their names, `matching.py` decides whether their
content fits the model. A folder that does not fit is refused with all its problems.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import AdapterRejected, AdapterTooLarge
from ..lora_module import Array, BaseTensors, LoRAModule
from ..targets import TABLES, TargetModule
from .cause import likely_cause
from .config import MAX_CONFIG_BYTES, ConfigError, PeftConfig, parse_config
from .fingerprint import fingerprint, seconds_of_quiet
from .folder import CONFIG_FILE, AdapterFolder, Unreadable, changed, open_folder
from .matching import Matcher, is_targeted, warnings_of
from .signatures import MAX_SIGNATURE_BYTES, SIGNATURE_FILE
from .text import MAX_ADDED_TOKENS, AdapterText, TextError, encode_text, read_adapter_text
from .token_rows import matrix_shape
from .trained_names import TrainedNames, find_names
from .weights_file import MAX_HEADER_BYTES, read_tensors

OUTPUT_VECTORS = 2  # of a module's outputs, at most: its bias, and DoRA's magnitude or the bias of B
QUIET = 0.02  # seconds without a change of any file, after which a save is taken to be over
PATIENCE = 0.3  # seconds of waiting for that
LARGEST_ELEMENT = 8  # bytes; types that are not served are read, too, so that the refusal can name them


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: str
    digest: str  # sha256 over both files, and over the text if there is any
    modules: tuple[LoRAModule, ...]  # in the order of the model's targets
    warnings: tuple[str, ...]
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA
    kind: str = "LoRA"
    tensor_names: tuple[str, ...] = ()  # tensors in the file that are applied
    ignored_tensors: tuple[str, ...] = ()  # tables in the file that are the base model's
    refused_tensors: tuple[str, ...] = ()  # tensors in the file that do not fit; with any, do not use the checkpoint
    num_bytes: int = 0  # size of both files
    text: AdapterText = AdapterText()
    vocab_size: int | None = None  # the adapter's own, if its tables are longer or shorter than the model's
    name_changes: tuple[str, ...] = ()  # what was left out of the file's names of tensors, or put before them
    unknown_fields: tuple[str, ...] = ()  # fields of the configuration that PEFT leaves out, as blora does
    signatures: bytes | None = None  # of the file beside it, if there is one
    fingerprint: str = ""  # taken before the files were read: while it stands, they have this content

    @property
    def is_exclusive(self) -> bool:
        """Whether the adapter cannot be scaled or summed with others: DoRA, rows of tables, a vocabulary of its own."""
        is_sum = all(module.gain is None and module.rows is None for module in self.modules)
        return not is_sum or self.vocab_size is not None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The content of a folder, and all reasons for refusing it."""

    problems: tuple[str, ...]
    kind: str = ""
    checkpoint: Checkpoint | None = None  # as far as it could be read; whole if there is no problem
    configuration: bytes = b""  # the file's content


def read_checkpoint(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None = None,
    base: BaseTensors | None = None,
    max_elements: int | None = None,
) -> Checkpoint:
    """Reads and checks a PEFT folder.

    roots: folders in one of which it has to lie after links are followed; None allows any place.
    base: the base model's tensors; without them, adapters that are defined by them (DoRA, trained biases) are refused.
    max_elements: most numbers in A and B of all modules together; None allows any number.

    Raises AdapterRejected with everything that does not fit, and AdapterTooLarge before weights are read.
    """
    judged = judge_checkpoint(folder, targets, roots, base, max_elements)
    if judged.problems or judged.checkpoint is None:
        raise AdapterRejected(str(folder), judged.problems)
    return judged.checkpoint


def judge_checkpoint(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None = None,
    base: BaseTensors | None = None,
    max_elements: int | None = None,
) -> Judgement:
    """Reads as `read_checkpoint` does, but returns the problems, with everything that could be read. Raises
    AdapterTooLarge.

    Another program may be saving into the folder, file by file. So what was read counts once the files have been quiet
    for a moment, and otherwise it is read again. Weights that go on changing beside one configuration are taken.
    """
    deadline, configurations = time.monotonic() + PATIENCE, set[bytes]()
    while True:
        before = fingerprint(folder)
        judged = _read(folder, targets, roots, base, max_elements, before)
        configurations.add(judged.configuration)
        if (quiet := seconds_of_quiet(folder)) < QUIET:
            time.sleep(QUIET - quiet)
        if fingerprint(folder) == before:
            return judged
        if time.monotonic() > deadline:
            is_one = judged.problems or len(configurations) == 1
            return judged if is_one else Judgement((str(changed("the folder")),), judged.kind)


def _read(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None,
    base: BaseTensors | None,
    max_elements: int | None,
    before: str,
) -> Judgement:
    """before: the fingerprint of the files."""
    kind = ""
    try:
        files = open_folder(folder, roots)
        config_bytes = files.read(CONFIG_FILE, MAX_CONFIG_BYTES)
        config = parse_config(config_bytes)
        kind = config.kind
        _check_size(config, targets, max_elements)
        weights = files.read_weights(_most_bytes(config, targets, max_elements))
        text = read_adapter_text(files.read_if_there)
        if files.read(CONFIG_FILE, MAX_CONFIG_BYTES) != config_bytes:  # and may go with other weights
            raise changed(CONFIG_FILE)
        if len(weights) > 1 and fingerprint(folder) != before:  # one file alone is of one moment
            raise changed("one of the weights files")
        signatures = files.read_if_there(SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
        content = _Content(str(folder), before, files, config_bytes, weights, text, signatures)
        return replace(_judge(content, config, targets, base), configuration=config_bytes)
    except ConfigError as error:
        return Judgement(tuple(error.problems), kind)
    except (Unreadable, TextError) as error:
        return Judgement((str(error),), kind)


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a folder's files."""

    path: str  # as the caller named it
    fingerprint: str
    files: AdapterFolder
    config: bytes
    weights: Sequence[bytes]
    text: AdapterText
    signatures: bytes | None

    @property
    def digest(self) -> str:
        return _digest(self.config, self.weights, self.text)


def _digest(config: bytes, weights: Sequence[bytes], text: AdapterText) -> str:
    parts = [config, *weights, *([] if text.is_empty else [encode_text(text)])]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def digest_of(folder: Path) -> tuple[Path, str]:
    """Returns the folder that holds an adapter's files, and the digest of their content, whatever the model is. Raises
    AdapterRejected."""
    try:
        files = open_folder(folder, None)
        config, weights = files.read(CONFIG_FILE, MAX_CONFIG_BYTES), files.read_weights(1 << 62)
        return files.path, _digest(config, weights, read_adapter_text(files.read_if_there))
    except (Unreadable, TextError) as error:
        raise AdapterRejected(str(folder), [str(error)]) from None


def _judge(
    content: _Content, config: PeftConfig, targets: Sequence[TargetModule], base: BaseTensors | None
) -> Judgement:
    tensors = read_tensors(content.files.weights, content.weights)
    names = find_names(tensors, targets)
    config = config.with_names(names.trained_as)
    matcher = Matcher({name: tensors[in_file] for name, in_file in names.in_file.items()}, config, targets, base)
    modules = matcher.match()
    taken = names.in_file.keys() - matcher.ignored - matcher.refused
    checkpoint = Checkpoint(
        path=content.path,
        digest=content.digest,
        modules=modules,
        warnings=(*content.files.warnings, *warnings_of(config, modules, targets)),
        kind=config.kind,
        tensor_names=names.of_file(taken),
        ignored_tensors=names.of_file(matcher.ignored),
        refused_tensors=tuple(sorted([*names.of_file(matcher.refused), *names.doubles])),
        num_bytes=len(content.config) + sum(map(len, content.weights)),
        invocation_tokens=config.invocation_tokens,
        text=content.text,
        vocab_size=matcher.vocab_size,
        name_changes=names.changes,
        unknown_fields=config.unknown_fields,
        signatures=content.signatures,
        fingerprint=content.fingerprint,
    )
    return Judgement(tuple(_problems(matcher, names, tensors, config, targets)), config.kind, checkpoint)


def _problems(
    matcher: Matcher,
    names: TrainedNames,
    tensors: dict[str, Array],
    config: PeftConfig,
    targets: Sequence[TargetModule],
) -> list[str]:
    """Returns all reasons for a refusal, the likely cause of misfits first."""
    misfits = matcher.misfits
    misfits.misplaced = [names.in_file.get(name, name) for name in misfits.misplaced]
    misfits.doubles = names.doubles
    cause = likely_cause(misfits, tensors, names.adapters, targets, config.base_model) if misfits else None
    causes = [] if cause is None else [f"likely cause: {cause}"]
    return [*causes, *misfits.lines(), *matcher.problems]


def _check_size(config: PeftConfig, targets: Sequence[TargetModule], max_elements: int | None) -> None:
    num_elements = sum(
        config.rank_of(target.name) * (target.in_features + target.out_features)
        for target in targets
        if is_targeted(config, target)
    )
    if max_elements is not None and num_elements > max_elements:
        raise AdapterTooLarge(
            "the adapter is too large: "
            f"its ranks ask for {num_elements} weights, the engine's memory holds {max_elements}"
        )


def _most_bytes(config: PeftConfig, targets: Sequence[TargetModule], max_elements: int | None) -> int:
    """Returns the size of the largest file that the configuration may belong to. A larger file is not read. Every
    module counts: patterns may be meant for other names, which the file tells."""
    rank = max([config.rank, *config.rank_pattern.values()])
    products = sum(rank * (target.in_features + target.out_features) for target in targets)
    elements = products if max_elements is None else min(products, max_elements)
    for target in targets:
        elements += OUTPUT_VECTORS * target.out_features
        if target.kind in TABLES:  # its whole matrix: trained, the base model's, or both and a copy
            size, width = matrix_shape(target)
            num_matrices = 3 if config.modules_to_save else 1
            elements += num_matrices * (size + MAX_ADDED_TOKENS) * width + rank * MAX_ADDED_TOKENS
            elements += 2 * len(config.tokens_of(target.name)) * width
    return elements * LARGEST_ELEMENT + MAX_HEADER_BYTES
