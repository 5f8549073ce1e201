"""What becomes of an input that the engine or the store cannot take: put aside, so that everything else goes on.

Not the finding of it and not the rebuilding (`pipeline.py`). Ending the process instead would meet the same input again after
each restart, for ever. Invariant: whoever waits for the input hears of it, a frame is kept as a dead letter, and beyond
FAULTS_MAX within FAULTS_MS the process does end: then something is wrong with more than one input.
"""

from collections import deque

import structlog

from tocsin_collector.batch import FrameItem, InputItem, Item, LetterItem, OperationItem
from tocsin_collector.core.model import Command, CommandAnswer
from tocsin_collector.store.base import Answer

log = structlog.get_logger(__name__)

ENGINE_FAULT = "engine fault"  # codes of the dead letter
STORE_FAULT = "store fault"
FAULTS_MAX = 100
FAULTS_MS = 3_600_000


class Faults:
    """How many there were; `put_aside` counts each."""

    def __init__(self) -> None:
        self.count = 0  # since the start
        self._newest_ms: deque[int] = deque(maxlen=FAULTS_MAX)

    def put_aside(self, item: Item, exc: Exception, code: str, now_ms: int) -> LetterItem | None:
        """What is to be taken in its place, if anything. Raises `exc` when this is too much, or nothing to be put aside."""
        self.count += 1
        detail = f"{type(exc).__name__}: {exc}"
        log.error("input put aside, the engine is rebuilt without it", kind=kind_of(item), code=code, exc_info=exc)
        oldest_ms = self._newest_ms[0] if len(self._newest_ms) == FAULTS_MAX else None
        self._newest_ms.append(now_ms)
        if isinstance(item, LetterItem) or (oldest_ms is not None and 0 <= now_ms - oldest_ms < FAULTS_MS):
            raise exc
        if isinstance(item, FrameItem):
            return LetterItem(item.agent, item.spool_id, item.frame.seq, code, detail, item.message, item.done)
        if isinstance(item, OperationItem):
            item.answer(Answer(error=exc))
        elif item.answer is not None:
            incident = item.input.incident if isinstance(item.input, Command) else ""
            item.answer(CommandAnswer(incident, f"the collector failed on this ({code}): {detail}"))
        return None


def kind_of(item: Item) -> str:
    return type(item.input if isinstance(item, InputItem) else item).__name__
