"""IdentitiesFile: the file that says whose each token is, and what its callers may do. Owns its schema.

identities:
  - tenant: acme
    token_sha256: [3a5f...]     # of each of its tokens; two while one replaces the other
    weight: 2
    priorities: [0, 10]
    adapters: ["acme/*", "public-*"]
    may_upload: ["acme/*"]
    quotas: {requests: 64, queued_tokens: 65536, adapters: 16, upload_bytes: 268435456}
  - tenant: operations
    token_sha256: [77b1...]
    operator: true
shared_prompts: [system.txt]    # system prompts whose cached prefixes all tenants share
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .caller import PRIORITIES, Caller, salt_of
from .file_state import file_state
from .tenant import Quotas, Tenant
from .yaml_node import YamlNode

FIELDS = (
    *("tenant", "token_sha256", "operator", "weight", "priorities", "adapters", "may_upload"),
    "quotas",
)
QUOTAS = ("requests", "queued_tokens", "adapters", "upload_bytes")
MAX_TENANT_LENGTH = 128  # characters, as of the metadata x-tenant-id
LEAST_WEIGHT, MOST_WEIGHT = 1e-3, 1e3  # as of --tenant-weights
MAX_QUOTA = 1 << 62
MAX_SHARED_PROMPTS, MAX_PROMPT_BYTES = 64, 1 << 20
HASH_LENGTH = 64  # hexadecimal digits


@dataclass(frozen=True, slots=True)
class FileContent:
    callers: Mapping[bytes, Caller]  # by the hash of the token
    shared_prompts: tuple[str, ...]


class IdentitiesFile:
    def __init__(self, path: Path, are_prefixes_shared: bool = False) -> None:
        self._path, self._are_prefixes_shared = path, are_prefixes_shared
        self._seen: dict[Path, tuple[int, int, int] | None] = {}  # each file that was read, as it was before

    def has_changed(self) -> bool:
        """Whether files may have changed since reading began: one that was written meanwhile is to be read again."""
        return any(file_state(path) != seen for path, seen in self._seen.items())

    def read(self) -> FileContent:
        """Raises OSError, ValueError, which name the place."""
        self._seen = {self._path: file_state(self._path)}  # after a mistake, too: it may be mended
        root = YamlNode.read(self._path)
        fields = root.fields("identities", "shared_prompts")
        if "identities" not in fields:
            root.fail("identities are missing")
        callers: dict[bytes, Caller] = {}
        of_tenants: dict[str, Tenant] = {}
        for node in fields["identities"].items():
            self._add(node, callers, of_tenants)
        if not callers:
            fields["identities"].fail("is empty, so nobody could call")
        prompts = fields.get("shared_prompts")
        return FileContent(callers, () if prompts is None else tuple(map(self._prompt, self._bounded(prompts))))

    def _add(self, node: YamlNode, callers: dict[bytes, Caller], of_tenants: dict[str, Tenant]) -> None:
        fields = node.fields(*FIELDS)
        for name in ("tenant", "token_sha256"):
            if name not in fields:
                node.fail(f"{name} is missing")
        caller = self._caller(fields)
        name = caller.tenant.name
        if of_tenants.setdefault(name, caller.tenant) != caller.tenant:
            node.fail(f"gives the tenant {name!r} another weight or other quotas than an identity before")
        for entry in fields["token_sha256"].items():
            digest = _token_digest(entry)
            if digest in callers:
                entry.fail("is the token of an identity before")
            callers[digest] = caller
        if not any(True for _ in fields["token_sha256"].items()):
            fields["token_sha256"].fail("is empty")

    def _caller(self, fields: Mapping[str, YamlNode]) -> Caller:
        is_operator = "operator" in fields and fields["operator"].is_true()
        name = _tenant_name(fields["tenant"])
        tenant = Tenant(
            name,
            fields["weight"].number(LEAST_WEIGHT, MOST_WEIGHT) if "weight" in fields else None,
            _quotas(fields["quotas"]) if "quotas" in fields else Quotas(),
            b"" if self._are_prefixes_shared else salt_of(name),
            is_proven=True,
        )
        return Caller(
            tenant=tenant,
            is_operator=is_operator,
            priorities=_priorities(fields["priorities"]) if "priorities" in fields else _usual(is_operator),
            adapters=_patterns(fields["adapters"]) if "adapters" in fields else (),
            may_upload=_patterns(fields["may_upload"]) if "may_upload" in fields else (),
        )

    def _bounded(self, prompts: YamlNode) -> list[YamlNode]:
        nodes = list(prompts.items())
        return nodes if len(nodes) <= MAX_SHARED_PROMPTS else prompts.fail(f"has more than {MAX_SHARED_PROMPTS} files")

    def _prompt(self, node: YamlNode) -> str:
        """The text of a file, whose path is relative to the folder of the identities."""
        path = self._path.parent / node.text()
        self._seen.setdefault(path, file_state(path))
        try:
            data = path.read_bytes()
            if len(data) > MAX_PROMPT_BYTES:
                node.fail(f"the file has {len(data)} bytes, at most {MAX_PROMPT_BYTES}")
            return data.decode()
        except OSError as error:
            node.fail(f"cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            node.fail("is not UTF-8")


def _usual(is_operator: bool) -> tuple[int, int]:
    """Only who was given the right may be more urgent than others."""
    return PRIORITIES if is_operator else (0, PRIORITIES[1])


def _tenant_name(node: YamlNode) -> str:
    name = node.text()
    if not 0 < len(name) <= MAX_TENANT_LENGTH or not name.isprintable():
        node.fail(f"is not a printable text of 1 to {MAX_TENANT_LENGTH} characters")
    return name


def _token_digest(node: YamlNode) -> bytes:
    text = node.letters()
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(text) != HASH_LENGTH or len(digest) * 2 != HASH_LENGTH:
        node.fail(f"is no sha256 of a token, {HASH_LENGTH} hexadecimal digits")  # the text may be the token itself
    return digest


def _priorities(node: YamlNode) -> tuple[int, int]:
    values = [entry.integer(*PRIORITIES) for entry in node.items()]
    if len(values) != 2 or values[0] > values[1]:
        node.fail("is not the lowest and the highest value")
    return values[0], values[1]


def _patterns(node: YamlNode) -> tuple[str, ...]:
    return tuple(entry.text() for entry in node.items())


def _quotas(node: YamlNode) -> Quotas:
    return Quotas(**{name: value.integer(0, MAX_QUOTA) for name, value in node.fields(*QUOTAS).items()})
