"""Layouts that the collector may have lost, and the frames that carry them again.

Not the spool: there each segment declares what it uses, and what was acknowledged is not sent again. Invariant: a layout that
is owed goes with the first frame sent that uses it, and again with the same one until that is acknowledged.
"""

from collections.abc import Iterable, Mapping

from tocsin_agent.generation import Generation
from tocsin_proto.codec import WireError, decode_frame
from tocsin_proto.records import Frame, Layout

READ_BYTES = 256 * 1024


class Redeclaration:
    """For one spool id at a time: that of the frames that are being sent."""

    def __init__(self) -> None:
        self._spool_id = b""
        self._layouts: dict[int, Layout] = {}
        self._carriers: dict[int, int] = {}  # layout id -> the frame that it goes with
        self._last_seq = 0  # frames behind this one declare for themselves

    def owe(self, generation: Generation, layouts: Mapping[int, Layout]) -> None:
        """Of the frames that the generation holds now, each that uses one of these must find it declared."""
        if generation.spool_id != self._spool_id:
            self._spool_id, self._layouts, self._carriers = generation.spool_id, {}, {}
        self._layouts |= layouts
        self._last_seq = generation.last_seq
        for id_ in layouts:
            self._carriers.pop(id_, None)

    def is_owed(self, generation: Generation) -> bool:
        """Whether frames have to be looked at."""
        return bool(self._layouts) and generation.spool_id == self._spool_id

    def due(self, frame: Frame) -> tuple[Layout, ...]:
        """What has to go with this frame beside what it declares itself."""
        here = {layout.id for layout in frame.layouts}
        used = dict.fromkeys(section.layout for section in frame.sections if section.layout not in here)
        return tuple(
            self._layouts[id_]
            for id_ in used
            if id_ in self._layouts and self._carriers.get(id_, frame.seq) >= frame.seq
        )

    def carry(self, frame: Frame) -> None:
        """The frame is being sent as it is now."""
        for layout in frame.layouts:
            if layout.id in self._layouts:
                self._carriers[layout.id] = min(frame.seq, self._carriers.get(layout.id, frame.seq))

    def acked(self, generation: Generation) -> None:
        """The collector holds more than before."""
        if not self.is_owed(generation):
            return
        done = [id_ for id_, seq in self._carriers.items() if seq <= generation.acked]
        for id_ in [*self._layouts] if generation.acked >= self._last_seq else done:
            del self._layouts[id_]
            self._carriers.pop(id_, None)


def declared_before(generation: Generation, seq: int) -> dict[int, Layout]:
    """What frames before `seq` declared that are still on disk: those of the segment that it lies in are."""
    found: dict[int, Layout] = {}
    at = generation.segments[0].first_seq if generation.segments else seq
    while at < seq and (entries := generation.read(at, READ_BYTES)):
        at = entries[-1].seq + 1
        for entry in entries:
            if entry.seq < seq:
                found |= {layout.id: layout for layout in declared_in(entry.raw)}
    return found


def declared_in(raw_frame: bytes) -> Iterable[Layout]:
    try:
        return decode_frame(raw_frame).layouts
    except WireError:
        return ()
