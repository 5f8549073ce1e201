"""Availability: the six sums of a component's ledger over a period."""

from typing import Annotated

import msgspec

from tocsin_collector.web.api import records
from tocsin_collector.web.api.call import Call, Operation
from tocsin_collector.web.api.problem import Failure

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]  # what the store can hold
PERIOD_MS_MAX = 10 * 366 * 86_400_000


class AvailabilityQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """from, to: Unix ms; default: the last 24 hours. revision: as the ledger was then; default: as it is now."""

    from_: Natural | None = msgspec.field(default=None, name="from")
    to: Natural | None = None
    revision: Natural | None = None


async def availability(call: Call) -> records.Availability:
    query: AvailabilityQuery = call.query
    component = call["component"]
    to_ms = call.view.now_ms if query.to is None else query.to
    from_ms = to_ms - 86_400_000 if query.from_ is None else query.from_
    if not 0 <= from_ms < to_ms or to_ms - from_ms > PERIOD_MS_MAX:
        raise Failure(
            400, "invalid parameter", "no such period", "from before to, both Unix milliseconds, at most ten years"
        )
    if component not in await call.source.components(call.view.now_ms):
        raise Failure(404, "not found", f"there is no component {component}", "GET /api/v1/hosts lists them")
    sums = await call.source.sums(component, from_ms, to_ms, call.view.now_ms, query.revision)
    row = sums.row
    return records.Availability(
        component=component,
        from_ms=from_ms,
        to_ms=to_ms,
        revision=sums.revision,
        up_ms=row.up,
        degraded_ms=row.degraded,
        down_ms=row.down,
        unknown_ms=row.unknown,
        maintenance_ms=row.maintenance,
        outside_ms=row.outside,
        ratio=sums.ratio,
        coverage=sums.coverage,
    )


OPERATIONS = (
    Operation(
        "getAvailability",
        "GET",
        "/availability/{component}",
        "viewer",
        "Six sums in ms over a period",
        availability,
        records.Availability,
        AvailabilityQuery,
    ),
)
