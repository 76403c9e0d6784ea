"""ModelNames: what `model` and `lora` of a request mean: the base model, an adapter, or a sum of adapters."""

from collections.abc import Mapping, Sequence

from ...errors import InvalidRequest
from ...front_end.adapter_choice import Adapter, check_number
from ...outputs import LoRARequest

MAX_SCALE_LENGTH = 32  # characters; a double has at most 24


class ModelNames:
    def __init__(self, names: Sequence[str], root: str) -> None:
        """names: of the base model; answers have the first one. root: its path or its id in the hub."""
        self.names, self.root = list(names), root

    @property
    def base(self) -> str:
        return self.names[0]

    @property
    def listed(self) -> list[str]:
        """The names that clients are told of. The path is known besides, for those who send it as they gave it."""
        return [name for name in self.names if name == self.base or name != self.root]

    def adapter(self, model: str | None, lora: Mapping[str, float] | None) -> Adapter:
        """Returns the adapters of a request. A name that is not the base model's is an adapter's, or, as in
        "a:1.0+b:0.5", several with their scales. Raises InvalidRequest."""
        is_base = not model or model in self.names
        if lora is not None:
            if not is_base:
                raise InvalidRequest(
                    "lora", f"is given besides the adapter {model!r:.140} in model; send one of the two"
                )
            check_number(len(lora))
            return [LoRARequest(name, lora_scale=scale) for name, scale in lora.items()]
        if is_base or model is None:
            return None
        return _sum(model) if "+" in model or ":" in model else model

    def shown(self, model: str | None, lora: Mapping[str, float] | None) -> str:
        """Returns the `model` of an answer."""
        if lora:
            return "+".join(f"{name}:{scale:g}" for name, scale in lora.items())
        return model or self.base


def _sum(text: str) -> list[LoRARequest]:
    parts = text.split("+")
    check_number(len(parts))
    return [_part(part) for part in parts]


def _part(text: str) -> LoRARequest:
    name, separator, scale = text.partition(":")
    if not name:
        raise InvalidRequest("model", f"names no adapter in {text!r:.140}")
    return LoRARequest(name, lora_scale=_scale(scale)) if separator else LoRARequest(name)


def _scale(text: str) -> float:
    try:
        if len(text) > MAX_SCALE_LENGTH:  # each part of an answer repeats it
            raise ValueError
        return float(text)
    except ValueError:
        raise InvalidRequest("model", f"{text!r:.140} is not the scale of an adapter") from None
