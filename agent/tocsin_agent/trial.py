"""One round of some probes for `tocsin-agent test`: what each gave, and how it reads on a terminal.

Not the sampler: nothing is stored and nothing is sent. Invariant: one probe's failure is its own result, never the end.
"""

import asyncio
from collections.abc import Callable

import click
import msgspec

from tocsin_agent.probes import Measurement, ProbeError
from tocsin_agent.sampler import Target
from tocsin_proto.records import Event

PAUSE_S = 1.0  # shares of CPU time need two readings


class Result(msgspec.Struct, frozen=True):
    """What one probe gave in `tocsin-agent test`."""

    probe: str
    duration_ms: float
    problem: str | None
    measurements: list[Measurement]
    events: list[Event]
    identity: dict[str, str]


async def tried(targets: list[Target]) -> list[Result]:
    await asyncio.sleep(PAUSE_S)
    results = list(await asyncio.gather(*(_try(one) for one in targets)))
    for one in targets:
        if (close := getattr(one.probe, "close", None)) is not None:
            await close()
    return results


async def _try(one: Target) -> Result:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    measurements: list[Measurement] = []
    events: list[Event] = []
    problem = None
    try:
        async with asyncio.timeout(one.deadline_ms / 1000):
            async for item in one.probe.collect():
                if isinstance(item, Measurement):
                    measurements.append(item)
                else:
                    events.append(item)
    except TimeoutError:
        problem = f"did not end within {one.deadline_ms / 1000:g} s"
    except ProbeError as error:
        problem = str(error)
    except Exception as error:  # shown to the person who asked for it
        problem = f"{type(error).__name__}: {error}"
    identity = dict(getattr(one.probe, "identity", {}))
    return Result(one.key, round((loop.time() - started_s) * 1000, 1), problem, measurements, events, identity)


def show(results: list[Result], t: Callable[..., str]) -> None:
    """On the terminal; `t` translates."""
    for result in results:
        click.echo(
            t(
                "{probe}: {count} values in {ms} ms",
                probe=result.probe,
                count=len(result.measurements),
                ms=f"{result.duration_ms:g}",
            )
        )
        for name, value in sorted(result.identity.items()):
            click.echo(f"  {name}: {value}")
        for one in result.measurements:
            click.echo(f"  {_series_text(one)} = {_value_text(one)}")
        for event in result.events:
            click.echo("  " + t("event {name}: {text}", name=event.name, text=event.text))
        if result.problem is not None:
            click.echo(f"  {t('problem')}: {result.problem}", err=True)


def _series_text(one: Measurement) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in one.series.labels)
    return f"{one.series.metric}{{{labels}}}" if labels else one.series.metric


def _value_text(one: Measurement) -> str:
    states = dict(one.series.states)
    if one.value in states:
        return f"{one.value:g} ({states[int(one.value)]})"
    number = f"{one.value:g}" if isinstance(one.value, float) else str(one.value)
    return number if one.series.unit == "1" else f"{number} {one.series.unit}"
