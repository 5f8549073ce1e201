"""The first page: one sentence, every device by site, the open incidents, the held ones with their reason."""

from starlette.responses import Response

from tocsin_collector.web.headline import headline
from tocsin_collector.web.picture import lead, picture
from tocsin_collector.web.view import View


async def overview(view: View) -> Response:
    source = view.web.source
    config = await source.config()
    view.in_zone_of(config)
    shown = picture(config, await source.components(view.now_ms), await source.live_incidents())
    return view.page(
        "overview.html",
        headline=headline(view.language, shown.named_by_state()),
        lead=lead(shown.told),
        picture=shown,
        parents={incident.id: incident for incident in shown.told},
    )
