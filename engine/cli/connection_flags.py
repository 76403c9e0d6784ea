"""The flags that say which server a command talks to, and as whom; and the client made from them. Needs no engine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .identity_flags import API_KEY_VARIABLE

if TYPE_CHECKING:
    from blora.proto.async_client import AsyncClient
    from blora.proto.client import Client


def add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--target", default="127.0.0.1:50051", metavar="HOST:PORT", help="server to ask (default: %(default)s)"
    )
    add_credentials(group)


def add_credentials(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--token",
        type=Path,
        metavar="FILE",
        help=f"file that holds the token to send; the variable {API_KEY_VARIABLE} may hold it, too (default: none)",
    )
    group.add_argument(
        "--ssl-ca-certs",
        type=Path,
        metavar="FILE",
        help="certificates, in PEM, against which the server's is checked; the connection is then encrypted "
        "(default: a plain connection)",
    )
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="the client's own certificate, for mutual TLS")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="the private key of that certificate")


def open_client(args: argparse.Namespace, target: str, **options: Any) -> "Client":
    """Raises OSError for a file that cannot be read, ValueError."""
    from blora.proto.client import Client

    return Client(target, **_secrets(args), **options)


def open_async_client(args: argparse.Namespace, target: str, **options: Any) -> "AsyncClient":
    """As `open_client`."""
    from blora.proto.async_client import AsyncClient

    return AsyncClient(target, **_secrets(args), **options)


def _secrets(args: argparse.Namespace) -> dict[str, Any]:
    files = {
        "root_certificates": args.ssl_ca_certs,
        "certificate_chain": args.ssl_certfile,
        "private_key": args.ssl_keyfile,
    }
    secrets: dict[str, Any] = {name: path.read_bytes() for name, path in files.items() if path is not None}
    token = args.environment_key if args.token is None else args.token.read_text().strip()
    return secrets | ({"token": token} if token else {})
