"""AdapterSigners: whose signatures make an adapter one to load. Owns keys; reads no adapter.

Imports `cryptography` only where keys are used: it is an extra.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora.adapters import AdapterRejected
from blora.adapters.peft.checkpoint import digest_of
from blora.adapters.peft.signatures import SIGNATURE_FILE, read_signatures, signature_line, signed_message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

END = "-----END PUBLIC KEY-----"
MISSING = "the package cryptography is missing, by which adapters are signed: pip install '.[signing]'"


class AdapterSigners:
    def __init__(self, keys: "dict[str, Ed25519PublicKey]") -> None:
        """keys: by their ids."""
        self._keys = keys

    @classmethod
    def read(cls, path: str | Path) -> "AdapterSigners":
        """Reads public keys in PEM, one after another. Raises ValueError."""
        try:
            text = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the signers {path} cannot be read: {error}") from None
        blocks = [f"{block}{END}\n" for block in text.split(END)[:-1]]
        keys = [_public_key(block.strip().encode(), path) for block in blocks]
        if not keys:
            raise ValueError(f"{path} holds no public key in PEM")
        return cls({key_id(key): key for key in keys})

    def check(self, path: str, digest: str, content: bytes | None) -> None:
        """Raises AdapterRejected unless one of the keys has signed a content. content: of the file of signatures, None
        without one. path: for messages."""
        if content is None:
            raise AdapterRejected(path, [f"it is not signed: {SIGNATURE_FILE} is missing"])
        try:
            signatures = read_signatures(content)
        except ValueError as error:
            raise AdapterRejected(path, [str(error)]) from None
        known = {name: signature for name, signature in signatures.items() if name in self._keys}
        if not known:
            raise AdapterRejected(path, [f"its keys are no signers: {', '.join(signatures)[:200]!r}"])
        if not all(_is_by(self._keys[name], digest, signature) for name, signature in known.items()):
            raise AdapterRejected(path, ["its signature is of another content: it was changed after it was signed"])


def sign_folder(folder: Path, key_file: Path) -> str:
    """Writes the signature of a private key in PEM into an adapter's folder, beside those of other keys over the same
    content. Returns the digest. Raises AdapterRejected, OSError, ValueError."""
    key = _private_key(key_file)
    place, digest = digest_of(folder)
    own, file = key_id(key.public_key()), place / SIGNATURE_FILE
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    others = [line for line in lines if line.strip() and line.split()[0] != own]
    lines = [*others, signature_line(own, key.sign(signed_message(digest)))]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return digest


def key_id(key: "Ed25519PublicKey") -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _is_by(key: "Ed25519PublicKey", digest: str, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed_message(digest))
    except InvalidSignature:
        return False
    return True


def _public_key(block: bytes, path: str | Path) -> "Ed25519PublicKey":
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_public_key(block)
    except ValueError:
        raise ValueError(f"{path} holds a key that is none in PEM") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError(f"{path} holds a key that is not of Ed25519")
    public: Ed25519PublicKey = key
    return public


def _private_key(path: Path) -> "Ed25519PrivateKey":
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ValueError(f"the key {path} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError):
        raise ValueError(f"{path} holds no private key in PEM without a password") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{path} is not a key of Ed25519: openssl genpkey -algorithm ed25519 makes one")
    private: Ed25519PrivateKey = key
    return private


def _library() -> tuple[Any, Any]:
    """Raises ValueError where it is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise ValueError(MISSING) from None
    return serialization, ed25519
