"""Raw HTTP/2: frames on a socket, as no well-behaved client sends them."""

import socket
from collections.abc import Mapping
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
METHOD = "/blora.v1.GenerationService/GenerateStream"
MAX_FRAME = 1 << 14


class Connection:
    """A client's side of a connection. Stream ids are odd, and grow."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
        self._last_stream = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self) -> None:
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))

    def next_stream(self) -> int:
        self._last_stream += 2
        return self._last_stream

    def is_closed_by_server(self, seconds: float) -> bool:
        """Reads until the server closes the connection, for so long."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request_headers(stream: int, path: str = METHOD, further: Mapping[str, str] | None = None) -> bytes:
    """The HEADERS frame of a call, every field spelt out and put into no table."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **(further or {})}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def message(stream: int, content: bytes, *, is_compressed: bool = False, is_last: bool = True) -> bytes:
    """The DATA frames of one message of a call."""
    whole = bytes([is_compressed]) + len(content).to_bytes(4, "big") + content
    parts = [whole[first : first + MAX_FRAME] for first in range(0, len(whole), MAX_FRAME)]
    flags = [0] * (len(parts) - 1) + [END_STREAM if is_last else 0]
    return b"".join(frame(DATA, flag, stream, part) for flag, part in zip(flags, parts, strict=True))


def _text(text: str) -> bytes:
    """A string of HPACK, not compressed; at most 126 bytes."""
    return bytes([len(text)]) + text.encode()
