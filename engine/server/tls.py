"""Tls: the certificate, key and authorities of all doors, from files that are looked at again: certificates change.

Connections that are open go on with what they have; new ones get what the files hold.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from ..identity.file_state import file_state

logger = logging.getLogger(__name__)
PROTOCOLS = ["http/1.1"]  # of the HTTP door; gRPC's own way says h2


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files."""

    certificate: Path  # with the intermediate ones
    key: Path
    authorities: Path | None = None  # that have signed the certificates of clients, which then have to show one

    def paths(self) -> list[Path]:
        return [self.certificate, self.key, *([self.authorities] if self.authorities is not None else [])]


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    configuration: grpc.ServerCertificateConfiguration


class Tls:
    def __init__(self, files: TlsFiles) -> None:
        """Raises ValueError for files that cannot be used."""
        self._files = files
        self._seen = self._fingerprint()
        self._loaded = self._load()
        self._first = _context(files)  # listens for good, and hands each connection on to the newest one
        self._first.sni_callback = self._hand_on

    def refresh(self) -> bool:
        """Looks at the files; returns whether they have changed and can be used. Errors go to the log."""
        found = self._fingerprint()
        if found == self._seen:
            return False
        self._seen = found
        try:
            self._loaded = self._load()
        except ValueError as error:
            logger.error("the certificate stays as it was: %s", error)
            return False
        logger.info("the certificate has been read again")
        return True

    def ssl_context(self) -> ssl.SSLContext:
        return self._first

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a server of grpc or grpc.aio. It asks for the present certificate at every connection."""
        needs_client = self._files.authorities is not None
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration, lambda: self._loaded.configuration, needs_client
        )

    def _hand_on(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._loaded.context

    def _load(self) -> _Loaded:
        before = self._read()
        context = _context(self._files)
        if self._read() != before:
            raise ValueError(f"{self._files.certificate} or a file beside it changes while it is read")
        certificate, key, *authorities = before
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)
        return _Loaded(context, configuration)

    def _read(self) -> list[bytes]:
        try:
            return [path.read_bytes() for path in self._files.paths()]
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        return [file_state(path) for path in self._files.paths()]


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(PROTOCOLS)
    try:
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")  # never asks at the terminal
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ValueError(f"{files.certificate} and {files.key} are no certificate and its key: {reason}") from None
    if files.authorities is not None:
        try:
            context.load_verify_locations(files.authorities)
        except (OSError, ValueError) as error:
            raise ValueError(f"{files.authorities} holds no certificates: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
