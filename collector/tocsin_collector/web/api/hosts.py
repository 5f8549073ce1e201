"""Hosts: what is watched, how it is, what it measures now."""

import msgspec

from tocsin_collector.web.api import records, show
from tocsin_collector.web.api.call import LIMIT, Call, Operation
from tocsin_collector.web.api.problem import Failure
from tocsin_collector.web.picture import Host, picture


class HostsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    site: str = ""
    state: str = ""
    after: str = ""
    limit: int = LIMIT


class ValuesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    metric: str = ""


async def list_hosts(call: Call) -> records.Page[records.Host]:
    query: HostsQuery = call.query
    hosts = sorted(
        (
            host
            for host in await _hosts(call)
            if query.site in ("", host.device.site) and query.state in ("", host.now.state) and host.id > query.after
        ),
        key=lambda host: host.id,
    )
    shown = hosts[: query.limit]
    more = shown[-1].id if len(hosts) > query.limit else ""
    return records.Page([show.host(host) for host in shown], more)


async def get_host(call: Call) -> records.HostDetail:
    found = await _host(call)
    values = await call.source.values(found.id)
    return records.HostDetail(show.host(found), [show.value(value, call.language) for value in values])


async def list_values(call: Call) -> records.Page[records.Value]:
    found = await _host(call)
    metric = call.query.metric
    values = [value for value in await call.source.values(found.id) if metric in ("", value.series.metric)]
    return records.Page([show.value(value, call.language) for value in values])


async def _hosts(call: Call) -> list[Host]:
    source = call.source
    return picture(
        await source.config(), await source.components(call.view.now_ms), await source.live_incidents()
    ).hosts


async def _host(call: Call) -> Host:
    for host in await _hosts(call):
        if host.id == call["host"]:
            return host
    raise Failure(404, "not found", f"there is no host {call['host']}", "GET /api/v1/hosts lists them")


OPERATIONS = (
    Operation(
        "listHosts",
        "GET",
        "/hosts",
        "viewer",
        "All hosts and devices, by id",
        list_hosts,
        records.Page[records.Host],
        HostsQuery,
    ),
    Operation(
        "getHost", "GET", "/hosts/{host}", "viewer", "One host with its newest values", get_host, records.HostDetail
    ),
    Operation(
        "listValues",
        "GET",
        "/hosts/{host}/values",
        "viewer",
        "Its series and newest values",
        list_values,
        records.Page[records.Value],
        ValuesQuery,
    ),
)
