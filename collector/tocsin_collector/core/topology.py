"""Which devices stand behind which, and whether what is out of reach explains a child's silence.

One level: a child looks at its direct parents, and a parent that is itself explained counts as out of reach, so a chain
explains itself link by link. Only the telling is withheld on these grounds; the ledger and the resolve never are (law 5).
"""

from tocsin_collector.core.model import Registry
from tocsin_collector.core.registry import children


class Topology:
    """unreachable: device id -> key of the raised finding that says so, oldest first."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, ...]] = {}
        self._children: dict[str, tuple[str, ...]] = {}
        self.unreachable: dict[str, dict[str, None]] = {}

    def configure(self, registry: Registry) -> None:
        self._parents = {device.id: device.parents for device in registry.devices if device.parents}
        self._children = children(registry)

    def raise_(self, device: str, key: str) -> None:
        self.unreachable.setdefault(device, {})[key] = None

    def clear(self, device: str, key: str) -> None:
        keys = self.unreachable.get(device)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self.unreachable[device]

    def has_parents(self, device: str) -> bool:
        return device in self._parents

    def parents(self, device: str) -> tuple[str, ...]:
        return self._parents.get(device, ())

    def children(self, device: str) -> tuple[str, ...]:
        return self._children.get(device, ())

    def explained_by(self, device: str) -> str:
        """Key of the finding that explains why `device` cannot be reached: all its parents are out of reach. "" if none."""
        parents = self._parents.get(device, ())
        if not parents or not all(parent in self.unreachable for parent in parents):
            return ""
        return next(iter(self.unreachable[parents[0]]))
