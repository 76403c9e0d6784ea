"""The flags that say who may call a server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.flag_types import port

if TYPE_CHECKING:
    from ..identity.identities import Identities
    from ..server.access import Access
    from ..server.tls import Tls

API_KEY_VARIABLE = "BLORA_API_KEY"


def add_identity_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "identity", "Secrets come from files or the environment: everybody can read flags."
    )
    group.add_argument(
        "--identities",
        type=Path,
        metavar="FILE",
        help="YAML file that says whose each token is and what it gives: the tenant, its weight and quotas, the "
        "adapters that it may use, whether it is an operator's; read again when it changes (default: none)",
    )
    group.add_argument(
        "--share-prefixes",
        action="store_true",
        help="let the tenants of --identities share cached prefixes; then each can find out, by the time of an answer, "
        "what others have sent (default: each tenant has its own)",
    )
    group.add_argument(
        "--api-key",
        type=Path,
        metavar="FILE",
        help="file with the keys of which every call has to bring one as its bearer token, one key on each line; each "
        f"gives all rights; the variable {API_KEY_VARIABLE} holds a key, too (default: no key is asked for)",
    )

    group.add_argument(
        "--admin-port",
        type=operators_address,
        metavar="PORT|unix:PATH",
        help="address for operators: whoever reaches this port of 127.0.0.1, or this socket, which only its owner may "
        "open, has all rights over gRPC, and needs no token; at the other ports nobody is an operator (default: none)",
    )
    files: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    group.add_argument("--ssl-certfile", **files, help="certificate of the server, in PEM, for gRPC and HTTP over TLS")
    group.add_argument("--ssl-keyfile", **files, help="its key; both are read again when they change")
    group.add_argument(
        "--ssl-ca-certs", **files, help="certificates of authorities; clients have to show one that these have signed"
    )


def operators_address(text: str) -> str:
    """The address of --admin-port. Raises ArgumentTypeError."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    return f"127.0.0.1:{port(text)}"


def access(args: argparse.Namespace, environment_key: str) -> "Access":
    """environment_key: the value of the variable, or "". Raises ValueError."""
    from ..server.access import Access

    return Access(identities=identities(args, environment_key), tls=_tls(args), operators_address=args.admin_port)


def _tls(args: argparse.Namespace) -> "Tls | None":
    from ..server.tls import Tls, TlsFiles

    if args.ssl_certfile is None and args.ssl_keyfile is None and args.ssl_ca_certs is None:
        return None
    if args.ssl_certfile is None or args.ssl_keyfile is None:
        raise ValueError("TLS needs both --ssl-certfile and --ssl-keyfile")
    return Tls(TlsFiles(certificate=args.ssl_certfile, key=args.ssl_keyfile, authorities=args.ssl_ca_certs))


def identities(args: argparse.Namespace, environment_key: str) -> "Identities":
    """environment_key: the value of the variable, or "". Raises ValueError."""
    from ..identity.identities import Anybody, ApiKeys

    if args.identities is not None:
        if args.api_key is not None or environment_key:
            raise ValueError(f"--identities takes the place of --api-key and {API_KEY_VARIABLE}: give one of them")
        return _filed(args)
    if args.share_prefixes:
        raise ValueError("--share-prefixes is about the tenants of --identities, which are not given")
    keys = [] if args.api_key is None else _keys_of(args.api_key)
    keys += [environment_key] if environment_key else []
    return ApiKeys(keys) if keys else Anybody()


def _filed(args: argparse.Namespace) -> "Identities":
    from ..identity.filed_identities import FiledIdentities
    from ..identity.identities_file import IdentitiesFile

    try:
        return FiledIdentities(IdentitiesFile(args.identities, args.share_prefixes))
    except OSError as error:
        raise ValueError(f"--identities: {args.identities} cannot be read: {error.strerror}") from None


def _keys_of(path: Path) -> list[str]:
    """Raises ValueError, which does not repeat the value of the flag: in vLLM it is the key itself."""
    from ..identity.identities import read_api_keys

    try:
        keys = read_api_keys(path)
    except OSError as error:
        raise ValueError(
            f"--api-key takes a file that holds the keys, and it cannot be read: {error.strerror}"
        ) from None
    if not keys:
        raise ValueError("--api-key: there is no key in the file")
    return keys
