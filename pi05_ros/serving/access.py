"""Who may call the policy server: API keys from a file, TLS, and where it may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pi05_ros.serving.errors import ServingError


@dataclass(frozen=True)
class Access:
    """API keys that are accepted; empty accepts everybody."""

    keys: tuple[bytes, ...] = ()

    def allows(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header has one of the keys; compared in constant time."""
        if not self.keys:
            return True
        scheme, _, given = (authorization or "").strip().partition(" ")
        candidate = _digest(given.strip().encode("utf-8", "replace"))
        right = [hmac.compare_digest(candidate, _digest(key)) for key in self.keys]
        return scheme.lower() == "api-key" and any(right)

    def allows_page(self, origin: str | None, host: str | None) -> bool:
        """Whether a handshake may come from the web page that a browser names as its origin.

        Without keys any page in a browser on this machine could ask the policy, so only pages of
        this server's own address are let in. Robots name no origin. Browsers send no keys.
        """
        if self.keys or origin is None:
            return True
        try:
            site = urlsplit(origin)
        except ValueError:
            return False
        return site.netloc == host and is_loopback(site.hostname or "")


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Server side TLS, or None if neither file is given.

    Raises:
        ServingError: only one of the two is given, or they cannot be loaded.

    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ServingError("TLS needs both --cert and --key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ServingError(f"cannot load certificate {cert} with key {key}: {error}") from error
    return context


def check_exposure(host: str, access: Access) -> None:
    """Refuse to listen beyond this machine without keys; raises ServingError."""
    if not access.keys and not is_loopback(host):
        raise ServingError(
            f"host {host} is reachable from other machines; give --keys-file (and --cert, --key), "
            "or listen on 127.0.0.1"
        )


def _digest(key: bytes) -> bytes:
    """Of equal length whatever the key's, so that comparing tells nothing about it."""
    return hashlib.sha256(key).digest()


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
