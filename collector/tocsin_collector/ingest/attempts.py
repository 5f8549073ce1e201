"""How often something may go wrong for a peer: a sliding window of failures per address, a minute by default.

Not a queue and not a ban: who stays silent for the window may try again. Invariant: at most `peers_max` addresses are
remembered; the one that failed longest ago is forgotten first.
"""

from collections import OrderedDict, deque
from ipaddress import ip_address, ip_network

WINDOW_MS = 60_000
_V6_SITE_BITS = 64  # one customer of an IPv6 network has at least so many addresses: they count as one


class Attempts:
    def __init__(self, most: int = 10, window_ms: int = WINDOW_MS, peers_max: int = 4096) -> None:
        self._most = most
        self._window_ms = window_ms
        self._peers_max = peers_max
        self._failures: OrderedDict[str, deque[int]] = OrderedDict()

    def may_try(self, peer: str, now_ms: int) -> bool:
        failures = self._failures.get(peer)
        if failures is None:
            return True
        while failures and failures[0] <= now_ms - self._window_ms:
            failures.popleft()
        return len(failures) < self._most

    def failed(self, peer: str, now_ms: int) -> None:
        failures = self._failures.pop(peer, None)
        if failures is None:
            failures = deque(maxlen=self._most)
            if len(self._failures) >= self._peers_max:
                self._failures.popitem(last=False)
        failures.append(now_ms)
        self._failures[peer] = failures


def address_of(grpc_peer: str) -> str:
    """What counts as one peer in gRPC's words: "ipv4:192.0.2.7:4711" is "192.0.2.7", "ipv6:[2001:db8::1]:4711" its /64."""
    family, _, rest = grpc_peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]").partition("%25")[0]
    if family != "ipv6":
        return host or grpc_peer[:100]
    try:
        address = ip_address(host)
    except ValueError:
        return host[:100]
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or ip_network((address, _V6_SITE_BITS), strict=False))
