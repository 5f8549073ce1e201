"""Which frame may enter the journal: each sequence number of a spool once, in order.

Not a store: the caller keeps the high-water mark. The invariant (law 2): a mark only rises, and nothing at or below it is
ever applied again.
"""

from enum import Enum


class Admission(Enum):
    ACCEPT = "accept"
    DUPLICATE = "duplicate"  # applied already: acknowledge again, change nothing
    GAP = "gap"  # something before it is missing: ask for it


def admit(high_water: int, seq: int, follows: int) -> Admission:
    """Judge frame `seq`, whose predecessor in the agent's spool is `follows` (less than seq - 1 where it had to drop)."""
    if seq <= high_water:
        return Admission.DUPLICATE
    return Admission.ACCEPT if follows <= high_water else Admission.GAP
