"""Signatures: what an adapter's folder says of who vouches for it. Reads them; verifying them is another's matter.

The file has a line for each signature: the id of the signer's key, a blank, and the signature in base64, an Ed25519
over `signed_message` of the content's digest.
"""

import base64
import binascii

SIGNATURE_FILE = "adapter.sig"
MAX_SIGNATURE_BYTES = 4096
MAX_SIGNATURES = 16


def signed_message(digest: str) -> bytes:
    return b"blora adapter v1\n" + digest.encode()


def read_signatures(content: bytes) -> dict[str, bytes]:
    """Returns key id -> signature. Raises ValueError."""
    lines = [line.split() for line in content.decode("ascii").splitlines() if line.strip()]
    if not lines or len(lines) > MAX_SIGNATURES or any(len(line) != 2 for line in lines):
        raise ValueError(f"{SIGNATURE_FILE} does not have 1 to {MAX_SIGNATURES} lines of a key's id and a signature")
    try:
        return {key_id: base64.b64decode(signature, validate=True) for key_id, signature in lines}
    except binascii.Error:
        raise ValueError(f"{SIGNATURE_FILE} has a signature that is not base64") from None


def signature_line(key_id: str, signature: bytes) -> str:
    return f"{key_id} {base64.b64encode(signature).decode()}"
