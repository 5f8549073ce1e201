"""Which names name a secret: one answer for logs, error messages and printed settings.

Not a scanner of values: a secret in a harmless field is the caller's mistake. Invariant: law 9, no secret is ever shown.
"""

import re
from typing import Final

REDACTED: Final = "[redacted]"

_SECRET: Final = re.compile(
    r"(^|_)(token|password|passwd|passphrase|secret|community|credentials?|cookie|authorization|hmac|otp|pin"
    r"|key|apikey|privatekey|private_key|api_key|auth_key|priv_key)s?$",
)
_HARMLESS: Final = re.compile(
    r"(^|_)(dedup|incident|idempotency|layout|partition|primary|public|row|series|sort|resource|config|settings?)_keys?$"
)


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret. `key` alone does, `incident_key` and `secret_file` do not."""
    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
    return bool(_SECRET.search(plain)) and not _HARMLESS.search(plain)
