"""Commands against `blora serve` as a process with certificates and identities: who is answered, and who is not."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import Authority
from served import serving

from blora.engine.cli import main as cli

pytestmark = pytest.mark.slow

TOKENS = {"acme": "token-of-acme-0123456789", "ops": "token-of-operators-0123456789"}
IDENTITIES = """
identities:
  - {{tenant: acme, token_sha256: [{acme}], adapters: ["acme/*"], may_upload: ["acme/*"]}}
  - {{tenant: ops, token_sha256: [{ops}], operator: true}}
"""


class Secured(NamedTuple):
    """A server that asks for a certificate and a token."""

    address: str
    certificates: list[str]  # flags of a client that it lets in
    folder: Path  # of token files


@pytest.fixture(scope="module")
def secured(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    (folder / "authority.pem").write_bytes(authority.certificate)
    (folder / "identities.yaml").write_text(
        IDENTITIES.format(**{who: hashlib.sha256(token.encode()).hexdigest() for who, token in TOKENS.items()})
    )
    for who, token in [*TOKENS.items(), ("stranger", "token-of-a-stranger-0123456789")]:
        (folder / who).write_text(f"{token}\n")
    files = []
    for name in ("server", "client"):
        (folder / f"{name}.pem").mkdir()
        certificate, key = authority.identity(name).write(folder / f"{name}.pem")
        files.append([f"--ssl-certfile={certificate}", f"--ssl-keyfile={key}"])
    authorities = f"--ssl-ca-certs={folder / 'authority.pem'}"
    options = [*files[0], authorities, f"--identities={folder / 'identities.yaml'}"]
    rights = [f"--adapter-root={tiny_adapters['r4'].parent}", "--adapter-upload-bytes=64M"]
    with serving(tiny_model, *options, *rights) as server:
        yield Secured(server.address, [*files[1], authorities], folder)


def blora(secured: Secured, who: str | None, *argv: str) -> int:
    """who: whose token is sent."""
    token = [] if who is None else [f"--token={secured.folder / who}"]
    return cli.main([*argv, f"--target={secured.address}", *secured.certificates, *token])


def test_who_is_answered_by_the_token(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("client", "hello", "--max-tokens", "2", "--timeout", "100")
    for who in TOKENS:
        assert blora(secured, who, *ask) == 0 and capsys.readouterr().out.strip()
    for who in ("stranger", None):
        assert blora(secured, who, *ask) == 1
        assert "UNAUTHENTICATED: " in capsys.readouterr().err


def test_nobody_is_answered_without_the_certificates(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    token, ask = f"--token={secured.folder / 'ops'}", ("client", "hello", "--timeout", "20")
    authorities = secured.certificates[-1]
    for flags in ([], [authorities]):
        assert cli.main([*ask, f"--target={secured.address}", token, *flags]) == 1
        assert "UNAVAILABLE" in capsys.readouterr().err


def test_adapters_by_the_rights_of_the_token(
    secured: Secured, tiny_adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    r4 = str(tiny_adapters["r4"])
    assert blora(secured, "ops", "adapters", "load", "shared", r4) == 0
    assert blora(secured, "acme", "adapters", "load", "acme/one", r4) == 1
    assert "PERMISSION_DENIED" in capsys.readouterr().err
    assert blora(secured, "acme", "adapters", "upload", "acme/one", r4) == 0
    assert blora(secured, "acme", "adapters", "upload", "theirs", r4) == 1
    capsys.readouterr()
    assert blora(secured, "acme", "adapters", "list") == 0
    mine = capsys.readouterr().out
    assert "acme/one" in mine and "shared" not in mine and r4 not in mine
    assert blora(secured, "ops", "adapters", "list") == 0
    assert {"acme/one", "shared"} <= set(capsys.readouterr().out.split())
    ask = ("client", "hello", "--max-tokens", "2", "--adapter")
    assert blora(secured, "acme", *ask, "acme/one") == 0
    assert blora(secured, "acme", *ask, "shared") == 1


def test_the_load_is_shown_to_operators(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    assert blora(secured, "ops", "top", "--once", "--interval", "0.05") == 0
    assert "running" in capsys.readouterr().out
    assert blora(secured, "acme", "top", "--once", "--interval", "0.05") == 1
    assert "PERMISSION_DENIED" in capsys.readouterr().err
