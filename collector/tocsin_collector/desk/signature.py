"""Signs what is sent, and verifies it for receivers: HMAC-SHA256 over time and body.

Not encryption. The invariant: what `verify` lets through was signed with this secret, for this body, not longer ago than
the tolerance; a receiver that drops repeated Idempotency-Keys within it cannot be made to act twice.
"""

import hmac
from collections.abc import Mapping

TIMESTAMP = "Tocsin-Timestamp"  # Unix seconds
SIGNATURE = "Tocsin-Signature"  # "v1=<hex>"; several, separated by commas, while a secret is being changed
SCHEME = "v1="
TOLERANCE_S = 300
SIGNATURES_MAX = 8


class SignatureError(Exception):
    """Not to be trusted; says what is wrong, never what would have been right."""


def sign(secret: bytes, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The two headers that go with `body`."""
    return {TIMESTAMP: str(timestamp_s), SIGNATURE: SCHEME + _digest(secret, str(timestamp_s), body)}


def verify(
    secret: bytes, headers: Mapping[str, str], body: bytes, now: float, tolerance_s: float = TOLERANCE_S
) -> None:
    """Raises SignatureError. headers: names in any case; body: the bytes as received; now: Unix seconds."""
    found = {name.lower(): value for name, value in headers.items()}
    timestamp = found.get(TIMESTAMP.lower(), "")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise SignatureError(f"{TIMESTAMP} is missing or no number of seconds")
    given = found.get(SIGNATURE.lower(), "").split(",")[:SIGNATURES_MAX]
    right = (SCHEME + _digest(secret, timestamp, body)).encode()
    # Every one is compared, each in constant time: how long it takes tells nothing.
    matches = [hmac.compare_digest(one.strip().encode("utf-8", "replace"), right) for one in given]
    if not any(matches):
        raise SignatureError(f"{SIGNATURE} does not match: another secret, or the body was changed on the way")
    if abs(now - int(timestamp)) > tolerance_s:
        raise SignatureError(
            f"{TIMESTAMP} is {abs(now - int(timestamp)):.0f} s off, at most {tolerance_s:g} s are allowed"
        )


def _digest(secret: bytes, timestamp: str, body: bytes) -> str:
    return hmac.new(secret, timestamp.encode() + b"." + body, "sha256").hexdigest()
