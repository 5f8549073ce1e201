"""One device: its state, what it says now per instance, its availability, its incidents."""

from itertools import groupby

from starlette.responses import Response

from tocsin_collector.core.model import LIVE_STATES
from tocsin_collector.web.picture import unseen
from tocsin_collector.web.view import View

DAY_MS = 86_400_000
PERIODS_MS = {"24h": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
INCIDENTS_MAX = 20


async def device(view: View) -> Response:
    source, name = view.web.source, view.request.path_params["device"]
    config = await source.config()
    found = next((d for d in config.registry.devices if d.id == name), None) if config else None
    if config is None or found is None:
        return view.missing(view.language.t("There is no device {name}.", name=name))
    view.in_zone_of(config, found.site)
    wish = view.request.query_params.get("period", "")
    period = wish if wish in PERIODS_MS else "24h"
    values = await source.values(name)
    return view.page(
        "device.html",
        device=found,
        site=next((s for s in config.registry.sites if s.id == found.site), None),
        now=(await source.components(view.now_ms)).get(name) or unseen(name),
        metrics=[(m, list(group)) for m, group in groupby(values, key=lambda value: value.series.metric)],
        sums=await source.sums(name, view.now_ms - PERIODS_MS[period], view.now_ms, view.now_ms),
        period=period,
        periods=list(PERIODS_MS),
        incidents=(await source.incidents(device=name, limit=INCIDENTS_MAX)).items,
        live_states=LIVE_STATES,
    )
