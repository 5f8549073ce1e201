"""Whatever happens to agent, disk, network and collector: every frame arrives once, or lies within a declared gap."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.edge_rig import Rig


class Edge(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), small=st.booleans())
    def start(self, seed: int, small: bool) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tocsin-spool-"))
        self.rig = Rig(self.root / "spool", seed=seed, bytes_max=48 * 1024 if small else 1 << 20)
        self.connected = False

    @rule(count=st.integers(1, 40), event_every=st.integers(1, 9))
    def frames_are_made(self, count: int, event_every: int) -> None:
        for n in range(count):
            self.rig.append(event=n % event_every == 0, filler=100)

    @rule()
    def spool_is_synced(self) -> None:
        self.rig.spool.sync()

    @precondition(lambda self: not self.connected)
    @rule()
    def stream_opens(self) -> None:
        self.rig.connect()
        self.connected = self.rig.link.is_open

    @precondition(lambda self: self.connected)
    @rule()
    def frames_are_sent(self) -> None:
        self.rig.pump()
        self.connected = self.rig.link.is_open

    @precondition(lambda self: self.connected)
    @rule()
    def collector_commits(self) -> None:
        self.rig.commit()
        self.connected = self.rig.link.is_open

    @precondition(lambda self: self.connected)
    @rule()
    def frames_get_lost_with_the_stream(self) -> None:
        self.rig.link.wake(self.rig.clock())
        self.stream_dies(suspicious=False)

    @precondition(lambda self: self.connected)
    @rule(suspicious=st.booleans())
    def stream_dies(self, suspicious: bool) -> None:
        self.rig.link.disconnected(suspicious=suspicious)
        self.connected = False

    @rule()
    def collector_commits_unheard(self) -> None:
        self.rig.collector.commit()

    @rule()
    def collector_dies(self) -> None:
        self.rig.collector.crash()
        self.rig.link.disconnected()
        self.connected = False

    @rule()
    def agent_restarts(self) -> None:
        self.rig.link.disconnected()
        self.rig.spool.close()
        self.reopen()

    @rule()
    def agent_is_killed(self) -> None:
        self.rig.crash()
        self.reopen()

    @rule(cut=st.integers(1, 3000))
    def power_fails(self, cut: int) -> None:
        """The tail of the newest segment, which was not synced, is torn."""
        self.rig.spool.sync()
        held = self.sizes()
        for _ in range(3):
            self.rig.append()
        self.rig.crash()
        grown = [path for path, size in self.sizes().items() if size > held.get(path, 0)]
        for path in grown[-1:]:
            keep = max(held.get(path, 0), self.sizes()[path] - cut)
            with path.open("r+b") as file:
                file.truncate(keep)
        self.reopen()

    @rule(clean=st.booleans(), at=st.floats(0, 1), which=st.floats(0, 1), how=st.sampled_from(["flip", "cut", "gone"]))
    def disk_rots(self, clean: bool, at: float, which: float, how: str) -> None:
        if clean:
            self.rig.link.disconnected()
            self.rig.spool.close()
        else:
            self.rig.crash()
        paths = sorted(self.sizes())
        if paths:
            path = paths[min(int(which * len(paths)), len(paths) - 1)]
            body = bytearray(path.read_bytes())
            place = min(int(at * len(body)), len(body) - 1)
            note(f"{how} {path.name} at {place} of {len(body)}")
            if how == "flip":
                body[place] ^= 0x41
                path.write_bytes(body)
            elif how == "cut":
                path.write_bytes(body[:place])
            else:
                path.unlink()
        self.reopen()

    def reopen(self) -> None:
        self.rig.now_ms += 1000
        self.rig.open()
        self.connected = False

    def sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size for path in self.rig.folder.glob("*/*.seg")}

    @invariant()
    def no_number_is_used_twice(self) -> None:
        if hasattr(self, "rig"):
            names = [(made.spool_id, made.seq) for made in self.rig.made]
            assert len(names) == len(set(names))

    @invariant()
    def the_bound_holds(self) -> None:
        if hasattr(self, "rig"):
            assert self.rig.spool.bytes_held <= self.rig.bytes_max

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            self.rig.link.disconnected()
            self.rig.append()  # the frame that tells what is still owed
            self.rig.deliver_all()
            assert self.rig.missing() == []
        finally:
            self.rig.spool.abandon()
            shutil.rmtree(self.root)


TestEdge = Edge.TestCase
TestEdge.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
