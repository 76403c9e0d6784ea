"""Gate F6: adapters that nobody has signed, or that were changed since, are not loaded."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from blora.adapters import AdapterRejected
from blora.adapters.peft.checkpoint import digest_of
from blora.adapters.peft.signatures import SIGNATURE_FILE
from blora.engine import AsyncLLM
from blora.engine.adapter_store.signers import MISSING, AdapterSigners, sign_folder
from blora.engine.cli import main as cli

PEM = serialization.Encoding.PEM
KEY, STRANGER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()


def private(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(private(KEY))
    (tmp_path / "stranger.pem").write_bytes(private(STRANGER))
    (tmp_path / "signers.pem").write_bytes(b"# ours\n" + public(ed25519.Ed25519PrivateKey.generate()) + public(KEY))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, tiny_adapters: dict[str, Path]) -> Path:
    return Path(shutil.copytree(tiny_adapters["r4"], tmp_path / "adapter"))


def check(keys: Path, folder: Path) -> None:
    file = folder / SIGNATURE_FILE
    signers = AdapterSigners.read(keys / "signers.pem")
    signers.check(str(folder), digest_of(folder)[1], file.read_bytes() if file.exists() else None)


def refusal(keys: Path, folder: Path) -> str:
    with pytest.raises(AdapterRejected) as raised:
        check(keys, folder)
    return str(raised.value)


def test_what_a_signer_has_signed_is_taken(keys: Path, folder: Path) -> None:
    assert "is not signed" in refusal(keys, folder)
    sign_folder(folder, keys / "stranger.pem")
    assert "keys are no signers" in refusal(keys, folder)
    assert sign_folder(folder, keys / "key.pem") == digest_of(folder)[1]
    check(keys, folder)
    sign_folder(folder, keys / "key.pem")  # again: it takes the place of the one before
    assert len((folder / SIGNATURE_FILE).read_text().splitlines()) == 2


def flip(name: str, position: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def alter_config(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1}))


CHANGES = {
    **{f"weights {at}": flip("adapter_model.safetensors", at) for at in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)},
    **{f"configuration {at}": flip("adapter_config.json", at) for at in (0.0, 0.3, 0.7, 1.0)},
    "alpha": alter_config,
    "template": write("chat_template.jinja", "{{ messages }}"),
    "tokens": write("added_tokens.json", '{"<extra>": 300}'),
    "signature": flip(SIGNATURE_FILE, 0.6),
    "key id": flip(SIGNATURE_FILE, 0.0),
    "empty": write(SIGNATURE_FILE, ""),
    "nonsense": write(SIGNATURE_FILE, "nonsense"),
    "no base64": write(SIGNATURE_FILE, "abc ???"),
    "short": write(SIGNATURE_FILE, "abc YWJj"),
    "many": write(SIGNATURE_FILE, "abc YWJj\n" * 17),
    "not ascii": write(SIGNATURE_FILE, "é é"),
    "gone": lambda folder: (folder / SIGNATURE_FILE).unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_since_is_refused(change: Callable[[Path], None], keys: Path, folder: Path) -> None:
    sign_folder(folder, keys / "key.pem")
    check(keys, folder)
    change(folder)
    try:
        refusal(keys, folder)
    except AdapterRejected:  # it is no adapter any more
        return


def test_a_signature_of_another_adapter_is_refused(keys: Path, folder: Path, tiny_adapters: dict[str, Path]) -> None:
    other = Path(shutil.copytree(tiny_adapters["r8"], keys / "other"))
    sign_folder(other, keys / "key.pem")
    shutil.copy(other / SIGNATURE_FILE, folder)
    assert "of another content" in refusal(keys, folder)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----END PUBLIC KEY-----", private(KEY),
                                     public(ec.generate_private_key(ec.SECP256R1())), b"\xff"])  # fmt: skip
def test_signers_are_public_keys_of_ed25519(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "signers.pem").write_bytes(content)
    with pytest.raises(ValueError, match="signers"):
        AdapterSigners.read(tmp_path / "signers.pem")


def test_the_command_signs(keys: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapters", "sign", str(folder), "--key", str(keys / "key.pem")]) == 0
    assert digest_of(folder)[1] in capsys.readouterr().out
    check(keys, folder)
    for key in ("signers.pem", "missing.pem"):
        assert cli.main(["adapters", "sign", str(folder), "--key", str(keys / key)]) == 1
    assert cli.main(["adapters", "sign", str(keys), "--key", str(keys / "key.pem")]) == 1


def test_a_missing_package_is_named(keys: Path) -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from blora.engine.adapter_store.signers import AdapterSigners\n"
        f"AdapterSigners.read({str(keys / 'signers.pem')!r})"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1 and MISSING in ended.stderr


@pytest.mark.slow
def test_an_engine_loads_what_is_signed_from_everywhere(keys: Path, folder: Path, tiny_model: Path) -> None:
    async def body() -> None:
        options = {"memory": "2MB", "block_size": 4, "threads": 1, "adapter_roots": [keys]}
        async with AsyncLLM(tiny_model, adapter_signers=keys / "signers.pem", **options) as llm:
            with pytest.raises(AdapterRejected, match="is not signed"):
                await llm.load_adapter("a", folder)
            sign_folder(folder, keys / "key.pem")
            info = await llm.load_adapter("a", folder)
            assert info.digest == digest_of(folder)[1]
            alter_config(folder)
            with pytest.raises(AdapterRejected, match="of another content"):
                await llm.load_adapter("a", folder)
            assert (await llm.get_adapter("a")).digest == info.digest

    asyncio.run(asyncio.wait_for(body(), 200))
