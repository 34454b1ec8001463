"""The server's listening socket: bound before anything expensive happens, so that a port in use is said at once."""

from __future__ import annotations

import errno
import ipaddress
import socket

from backend.errors import ShardwiseError


class PortError(ShardwiseError):
    """The address cannot be listened on."""

    code = "port"


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: until the server answers, connections are refused, not kept waiting.

    Raises:
        PortError: the port is in use or not allowed, or the address is not one of this machine's.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise port_error(host, port, error) from None
    return listener


def port_error(host: str, port: int, error: OSError) -> PortError:
    """What the system's refusal means for the user."""
    hints = {
        errno.EADDRINUSE: "Stop the program that uses it (shardwise stop, if it is ours), or choose --port 0.",
        errno.EACCES: "Ports below 1024 are reserved; choose another with --port.",
        errno.EADDRNOTAVAIL: "Choose one of this machine's addresses with --host.",
    }
    what = f"Port {port} on {host} is in use" if error.errno == errno.EADDRINUSE else f"Cannot listen on {host}:{port}"
    return PortError(what, f"{error.strerror}.", hints.get(error.errno or 0, "Check --host and --port."))


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"
