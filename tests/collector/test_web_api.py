"""/api/v1 as a program meets it: typed answers, problems that say what would be right, pages by cursor."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.support.web_rig import PASSWORDS, START_MS, WebRig, web_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("api")) as rig:
        rig.story()
        yield rig


@pytest.fixture(scope="module")
def api(rig: WebRig) -> Iterator[httpx2.Client]:
    with rig.api("root") as api:
        yield api


def test_hosts_are_listed_page_by_page_without_loss_or_repetition(api: httpx2.Client) -> None:
    seen: list[str] = []
    after = ""
    for _ in range(10):
        page = api.get("/hosts", params={"limit": 2, "after": after}).json()
        seen += [host["id"] for host in page["items"]]
        after = page["next"]
        if not after:
            break
    assert seen == ["edge-hall-3", "hmi-2", "plc-press-7", "spare-1", "sw-hall-3"]
    down = api.get("/hosts", params={"state": "down"}).json()["items"]
    assert [host["id"] for host in down] == ["hmi-2", "plc-press-7", "sw-hall-3"]


def test_a_host_brings_its_newest_values_with_units_and_words(api: httpx2.Client) -> None:
    detail = api.get("/hosts/sw-hall-3").json()
    assert detail["host"]["state"] == "down"
    values = {value["metric"]: value for value in detail["values"]}
    assert values["device.reachable"]["value"] == 0
    assert values["device.reachable"]["text"] == "unreachable"
    counters = api.get("/hosts/edge-hall-3/values", params={"metric": "if.in_bytes"}).json()["items"]
    assert counters[0]["unit"] == "By/s"
    assert counters[0]["value"] == pytest.approx(1_500_000)


def test_why_explains_an_opened_and_a_suppressed_incident(api: httpx2.Client) -> None:
    live = {one["device"]: one for one in api.get("/incidents", params={"state": "live"}).json()["items"]}
    opened = api.get(f"/incidents/{live['edge-hall-3']['id']}/why").json()
    assert [step["kind"] for step in opened["decision"]] == ["above_raised", "held_for", "opened"]
    assert opened["evidence"][0]["text"] == "94%"
    assert opened["deliveries"][0]["channel"] == "desk"
    held_back = api.get(f"/incidents/{live['hmi-2']['id']}/why", headers={"Accept-Language": "zh-CN"}).json()
    assert held_back["explained_by"]["device"] == "sw-hall-3"
    assert held_back["incident"]["says"] == "hmi-2 没有应答"
    assert held_back["deliveries"] == []


def test_incidents_are_filtered_and_paged_newest_first(api: httpx2.Client) -> None:
    first = api.get("/incidents", params={"state": "live", "limit": 3}).json()
    rest = api.get("/incidents", params={"state": "live", "limit": 3, "after": first["next"]}).json()
    ids = [one["id"] for one in first["items"] + rest["items"]]
    assert len(ids) == len(set(ids)) == 4
    assert rest["next"] == ""
    critical = api.get("/incidents", params={"severity": "critical"}).json()["items"]
    assert [one["device"] for one in critical] == ["sw-hall-3"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/hosts/nobody", 404, "not found"),
        ("/incidents/I-0", 404, "not found"),
        ("/incidents/I-0/why", 404, "not found"),
        ("/hosts?sate=down", 400, "unknown parameter"),
        ("/hosts?limit=0", 400, "invalid parameter"),
        ("/hosts?limit=many", 400, "invalid parameter"),
        ("/incidents?state=opened", 400, "invalid parameter"),
        ("/incidents?severity=fatal", 400, "invalid parameter"),
        ("/incidents?after=nonsense", 400, "invalid parameter"),
        ("/availability/sw-hall-3?from=5&to=4", 400, "invalid parameter"),
        ("/availability/nobody", 404, "not found"),
        ("/availability/sw-hall-3?revision=9999999999999999999999", 400, "invalid parameter"),
        ("/availability/sw-hall-3?revision=-4", 400, "invalid parameter"),
        ("/nothing", 404, "not-found"),
    ],
)
def test_a_wrong_question_is_answered_with_what_would_be_right(
    api: httpx2.Client, path: str, status: int, code: str
) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["detail"]


def test_a_misspelt_parameter_is_named_with_the_right_one(api: httpx2.Client) -> None:
    assert api.get("/hosts?sate=down").json()["hint"] == 'did you mean "state"?'


@pytest.mark.parametrize(
    ("body", "type_", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"text": 5}', "application/json", 422),
        (b'{"txt": "x"}', "application/json", 422),
        (b"text=x", "application/x-www-form-urlencoded", 415),
        (b'"' + b"x" * 70_000 + b'"', "application/json", 413),
        (b"\xff\xfe", "application/json", 400),
    ],
)
def test_a_wrong_body_is_a_problem_and_does_nothing(api: httpx2.Client, body: bytes, type_: str, status: int) -> None:
    incident = api.get("/incidents").json()["items"][0]["id"]
    answer = api.post(f"/incidents/{incident}/acknowledge", content=body, headers={"Content-Type": type_})
    assert answer.status_code == status
    assert api.get(f"/incidents/{incident}").json()["incident"]["state"] == "open"


def test_availability_sums_to_the_period_to_the_millisecond(api: httpx2.Client, rig: WebRig) -> None:
    for component in ("sw-hall-3", "edge-hall-3", "hmi-2"):
        end_ms = rig.now_ms - 7
        answer = api.get(f"/availability/{component}", params={"from": START_MS - 12_345, "to": end_ms})
        sums = answer.json()
        states = ("up", "degraded", "down", "unknown", "maintenance", "outside")
        assert sum(sums[f"{state}_ms"] for state in states) == end_ms - START_MS + 12_345
        if component == "sw-hall-3":
            assert sums["down_ms"] == 110_000 - 7
            known = sums["up_ms"] + sums["down_ms"]
            assert sums["ratio"] == pytest.approx(sums["up_ms"] / known)
            assert sums["coverage"] == pytest.approx(known / (end_ms - START_MS + 12_345))


def test_acknowledge_comment_and_resolve_go_through_the_engine(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig, rig.api("wang.lei") as api:
        rig.story()
        incident = api.get("/incidents", params={"device": "edge-hall-3"}).json()["items"][0]["id"]
        assert api.post(f"/incidents/{incident}/acknowledge", json={"text": "on it"}).status_code == 200
        assert api.get(f"/incidents/{incident}").json()["incident"]["acknowledged_by"] == "wang.lei"
        twice = api.post(f"/incidents/{incident}/acknowledge")
        assert twice.status_code == 409
        assert api.post(f"/incidents/{incident}/comment", json={"text": "清理日志"}).status_code == 200
        assert api.post(f"/incidents/{incident}/resolve").status_code == 200
        detail = api.get(f"/incidents/{incident}").json()
        assert detail["incident"]["state"] == "resolved"
        assert [step["kind"] for step in detail["timeline"]][-3:] == ["acknowledged_by", "commented", "resolved_by"]
        assert detail["timeline"][-2]["text"] == "wang.lei: 清理日志"


def test_a_cookie_reads_but_only_a_token_changes(rig: WebRig) -> None:
    with rig.client("wang.lei") as browser:
        incident = browser.get("/api/v1/incidents").json()["items"][0]["id"]
        assert browser.post(f"/api/v1/incidents/{incident}/resolve", json={}).status_code == 403


def test_tokens_are_made_listed_without_secret_and_revoked(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig, rig.api("root") as api:
        made = api.post("/tokens", json={"site": "shanghai", "uses": 3, "ttl_s": 600})
        assert made.status_code == 201
        token = made.json()
        assert token["token"].startswith("tocsin1.")
        (listed,) = api.get("/tokens").json()["items"]
        assert (listed["id"], listed["uses_left"], listed["created_by"]) == (token["id"], 3, "root")
        assert token["token"].rpartition(".")[2] not in api.get("/tokens").text
        second = api.post("/tokens", json={"device": "edge-9"}).json()["id"]
        page = api.get("/tokens", params={"limit": 1}).json()
        rest = api.get("/tokens", params={"limit": 1, "after": page["next"]}).json()
        assert {one["id"] for one in page["items"] + rest["items"]} == {token["id"], second}
        assert rest["next"] == ""
        assert api.post(f"/tokens/{token['id']}/revoke").status_code == 200
        revoked = {one["id"]: one["revoked_ms"] for one in api.get("/tokens").json()["items"]}
        assert revoked == {token["id"]: rig.now_ms, second: 0}
        assert api.post("/tokens", json={"site": "nowhere"}).status_code == 409
        assert api.post("/tokens", json={"ttl_s": 1}).status_code == 422
        assert api.post("/tokens", json={"uses": 0}).status_code == 422


def test_login_gives_a_token_that_logout_ends(rig: WebRig) -> None:
    with httpx2.Client(base_url=f"{rig.base}/api/v1", trust_env=False, verify=False, timeout=20) as client:
        assert client.post("/login", json={"name": "ann", "password": "wrong"}).status_code == 401
        assert client.get("/hosts").headers["www-authenticate"] == "Bearer"
        granted = client.post("/login", json={"name": "ann", "password": PASSWORDS["ann"]}).json()
        client.headers["Authorization"] = f"Bearer {granted['token']}"
        assert granted["role"] == "viewer"
        assert client.get("/hosts").status_code == 200
        assert client.post("/logout").status_code == 200
        assert client.get("/hosts").status_code == 401


def test_the_description_covers_every_operation_and_every_reference_resolves(rig: WebRig) -> None:
    with rig.client() as client:
        described = client.get("/api/v1/openapi.json").json()
    from tocsin_collector.web.routes import OPERATIONS

    there = {(method, path) for path, methods in described["paths"].items() for method in methods}
    assert there == {(one.method.lower(), "/api/v1" + one.path) for one in OPERATIONS}
    references = set(_references(described))
    assert references
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references <= known


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_answers_have_exactly_the_fields_that_the_description_promises(rig: WebRig, api: httpx2.Client) -> None:
    described = api.get(f"{rig.base}/api/v1/openapi.json").json()
    schemas = described["components"]["schemas"]
    for path, name in (("/hosts", "Host"), ("/incidents", "Incident")):
        item = api.get(path).json()["items"][0]
        assert set(item) == set(schemas[name]["properties"]), path
    assert set(api.get("/availability/hmi-2").json()) == set(schemas["Availability"]["properties"])


def test_ready_says_what_is_wrong_and_metrics_hold_both_processes(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig, rig.client() as client:
        assert client.get("/readyz").json() == {"ready": True, "trouble": []}
        rig.trouble = "database or disk is full"
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["trouble"] == ["store: database or disk is full"]
        text = client.get("/metrics").text
        assert "tocsin_frames_total 3" in text
        assert "tocsin_engine_up 1.0" in text
        rig.run(rig.control.stop())
        assert "tocsin_engine_up 0.0" in client.get("/metrics").text
        assert client.get("/healthz").status_code == 200


def test_a_get_route_refuses_other_methods_as_a_problem(api: httpx2.Client) -> None:
    answer = api.delete("/hosts")
    assert answer.status_code == 405
    assert answer.json()["title"] == "Method not allowed"
