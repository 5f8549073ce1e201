"""The pages as a browser gets them: real server, store, engine and control socket on loopback."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from tests.support.web_rig import HOSTILE, PASSWORDS, WebRig, web_rig

from tocsin_collector.web.headers import BODY_BYTES_MAX
from tocsin_collector.web.pages import PAGES
from tocsin_collector.web.routes import OPERATIONS


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("web")) as rig:
        rig.story()
        yield rig


class Markup(HTMLParser):
    """What a browser would make of a page: its tags, its forms' tokens, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def value(self, name: str) -> str:
        return next(str(a["value"]) for tag, a in self.tags if tag == "input" and a.get("name") == name)


def told(rig: WebRig, device: str, state: str = "live") -> str:
    with rig.api("root") as api:
        items = api.get("/incidents", params={"state": state, "device": device}).json()["items"]
    return str(items[0]["id"])


def test_the_first_sentence_names_the_root_and_counts_what_is_behind_it(rig: WebRig) -> None:
    with rig.client("ann") as browser:
        page = browser.get("/").text
        assert (
            "<h1>sw-hall-3 is down with 2 devices behind it, nothing is known of spare-1; 1 of 5 devices is up.</h1>"
            in page
        )
        chinese = browser.get("/", params={"lang": "zh"}).text
        assert "<h1>sw-hall-3 中断，连同其后的 2 台设备，spare-1 状态未知；5 台设备中 1 台正常。</h1>" in chinese
        assert '<html lang="zh-CN"' in chinese


def test_a_suppressed_incident_is_shown_muted_with_its_reason(rig: WebRig) -> None:
    with rig.client("ann") as browser:
        text = " ".join(Markup(browser.get("/").text).text.split())
    root = told(rig, "sw-hall-3")
    assert f"plc-press-7 does not answer because sw-hall-3 does not answer ({root})" in text
    assert "Held back 2" in text
    assert "Open incidents 2" in text


def test_a_device_shows_values_per_instance_and_sums_that_add_up_to_the_day(rig: WebRig) -> None:
    with rig.client("ann") as browser:
        text = " ".join(Markup(browser.get("/devices/edge-hall-3").text).text.split())
        assert "/data 94%" in text
        assert "1.43 MiB/s" in text  # a counter is shown as its rate
        assert "16 GiB" in text
        assert browser.get("/devices/spare-1").status_code == 200
        assert browser.get("/devices/nobody").status_code == 404


def test_an_incident_page_explains_itself_and_a_viewer_gets_no_buttons(rig: WebRig) -> None:
    with rig.client("ann") as viewer, rig.client("wang.lei") as operator:
        address = f"/incidents/{told(rig, 'edge-hall-3')}"
        text = " ".join(Markup(viewer.get(address).text).text.split())
        assert "disk.used_ratio was 94%, above 92% (rule filesystem-full)" in text
        assert "It held for 5 min, as the rule asks" in text
        assert "desk: opened waiting" in text
        assert 'value="acknowledge"' not in viewer.get(address).text
        assert 'value="acknowledge"' in operator.get(address).text


def test_a_button_acknowledges_through_the_engine_and_the_page_says_who(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig:
        rig.story()
        with rig.client("wang.lei") as browser:
            address = f"/incidents/{told(rig, 'sw-hall-3')}"
            token = Markup(browser.get(address).text).value("form_token")
            form = {"form_token": token, "kind": "acknowledge", "text": "网线松动"}
            answer = browser.post(address, data=form)
            assert (answer.status_code, answer.headers["location"]) == (303, address)
            text = " ".join(Markup(browser.get(address).text).text.split())
            assert "Acknowledged by wang.lei: 网线松动" in text
            again = browser.post(address, data=form)
            assert again.status_code == 409
            assert "Not done:" in again.text
            assert "wang.lei is on it." in " ".join(Markup(browser.get("/").text).text.split())


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({"kind": "resolve"}, {}),
        ({"kind": "resolve", "form_token": "0" * 64}, {}),
        ({"kind": "resolve", "form_token": "ü"}, {}),
        ({"kind": "resolve", "form_token": "right"}, {"sec-fetch-site": "cross-site"}),
        ({"kind": "resolve", "form_token": "right"}, {"origin": "https://evil.example"}),
    ],
)
def test_a_forged_form_changes_nothing(rig: WebRig, form: dict[str, str], headers: dict[str, str]) -> None:
    with rig.client("wang.lei") as browser:
        address = f"/incidents/{told(rig, 'sw-hall-3')}"
        right = Markup(browser.get(address).text).value("form_token")
        sent = {name: right if value == "right" else value for name, value in form.items()}
        assert browser.post(address, data=sent, headers=headers).status_code == 403
        assert "Open" in browser.get(address).text


def test_every_page_and_operation_takes_its_role_and_nothing_less(rig: WebRig) -> None:
    incident = told(rig, "sw-hall-3")
    with rig.client() as nobody, rig.client("ann") as viewer, rig.client("wang.lei") as operator:
        weaker = {"operator": viewer, "admin": operator}
        for page in PAGES.values():
            path = page.path.replace("{device:path}", "sw-hall-3").replace("{incident}", incident)
            if page.role:
                answer = nobody.get(path) if "GET" in page.methods else nobody.post(path)
                assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login"), path
            if "POST" in page.methods and page.act_role in weaker:
                assert weaker[page.act_role].post(path, data={"kind": "resolve"}).status_code == 403, path
    with rig.client() as nobody, rig.api("ann") as viewer, rig.api("wang.lei") as operator:
        weaker = {"operator": viewer, "admin": operator}
        for one in OPERATIONS:
            path = one.path.replace("{host}", "sw-hall-3").replace("{incident}", incident)
            path = path.replace("{component}", "sw-hall-3").replace("{token}", "T-1")
            if one.role:
                assert nobody.request(one.method, f"/api/v1{path}").status_code == 401, path
            if one.role in weaker:
                assert weaker[one.role].request(one.method, path).status_code == 403, path


def test_hostile_names_stay_text_on_every_page(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig:
        rig.story()
        incident = told(rig, "sw-hall-3")
        with rig.client("wang.lei") as browser:
            token = Markup(browser.get(f"/incidents/{incident}").text).value("form_token")
            browser.post(f"/incidents/{incident}", data={"form_token": token, "kind": "acknowledge", "text": HOSTILE})
            for path in (
                "/",
                "/incidents?view=all",
                f"/incidents/{incident}",
                "/devices/hmi-2",
                "/devices/edge-hall-3",
                f"/devices/{quote(HOSTILE, safe='')}",
                f"/?x={quote(HOSTILE)}",
                f"/login?next={quote(HOSTILE)}",
            ):
                page = Markup(browser.get(path, follow_redirects=True).text)
                scripts = [a for tag, a in page.tags if tag == "script"]
                assert [s.get("src") for s in scripts] == ["/static/live.js"], path
                assert not [a for tag, a in page.tags if tag == "img"], path
                assert not [n for _, a in page.tags for n in a if n.startswith("on") or n == "style"], path
            assert "alert(1)" in browser.get(f"/incidents/{incident}").text  # shown, as text
            assert "{{7*7}}" in browser.get("/devices/hmi-2").text  # not 49: never a template


def test_every_answer_carries_the_security_headers(rig: WebRig) -> None:
    with rig.client("ann") as browser:
        for path in ("/", "/login", "/nope", "/api/v1/hosts", "/healthz", "/static/tocsin.css", "/static/live.js"):
            answer = browser.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            if not path.startswith("/static/"):
                assert answer.headers["cache-control"] == "no-store", path


def test_a_session_cookie_is_closed_to_scripts_and_ends_with_logout(rig: WebRig) -> None:
    with rig.client() as browser:
        answer = browser.post("/login", data={"name": "ann", "password": PASSWORDS["ann"]})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        secret = browser.cookies["tocsin_session"]
        token = Markup(browser.get("/").text).value("form_token")
        assert browser.post("/logout", data={"form_token": token}).status_code == 303
        browser.cookies.set("tocsin_session", secret)
        assert browser.get("/").headers["location"] == "/login"


def test_a_login_behind_https_travels_by_https_only(tmp_path: Path) -> None:
    with web_rig(tmp_path, url="https://tocsin.example") as rig, rig.client() as browser:
        answer = browser.post("/login", data={"name": "ann", "password": PASSWORDS["ann"]})
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]


def test_guessing_a_password_is_braked_for_the_guesser_only(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig, rig.client() as browser:
        for _ in range(5):
            assert browser.post("/login", data={"name": "ann", "password": "wrong"}).status_code == 401
        braked = browser.post("/login", data={"name": "ann", "password": PASSWORDS["ann"]})
        assert braked.status_code == 429
        assert int(braked.headers["retry-after"]) == 300
        assert browser.post("/login", data={"name": "root", "password": PASSWORDS["root"]}).status_code == 303
        browser.cookies.clear()
        rig.now_ms += 300_000
        assert browser.post("/login", data={"name": "ann", "password": PASSWORDS["ann"]}).status_code == 303


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_nobody_is_sent_elsewhere_after_login(rig: WebRig, back: str) -> None:
    with rig.client() as browser:
        form = {"name": "ann", "password": PASSWORDS["ann"]}
        assert browser.post("/login", params={"next": back}, data=form).headers["location"] == "/"
        assert browser.post("/preferences", data={"back": back}).headers["location"] == "/"


def test_language_and_theme_are_chosen_without_a_script(rig: WebRig) -> None:
    with rig.client("ann") as browser:
        browser.post("/preferences", data={"lang": "zh_CN", "back": "/incidents"})
        answer = browser.post("/preferences", data={"theme": "dark", "back": "/incidents"})
        assert answer.headers["location"] == "/incidents"
        page = browser.get("/incidents").text
        assert '<html lang="zh-CN" data-theme="dark">' in page
        assert "<h1>事件</h1>" in page
        browser.post("/preferences", data={"lang": "xx", "theme": "blink"})
        assert '<html lang="zh-CN" data-theme="dark">' in browser.get("/incidents").text
    with rig.client(**{"accept-language": "zh-TW,zh;q=0.9,en;q=0.8"}) as stranger:
        assert "登录" in stranger.get("/login").text


def test_a_body_that_is_too_large_is_refused(rig: WebRig) -> None:
    with rig.client() as browser:
        answer = browser.post("/login", data={"name": "ann", "password": "x" * (BODY_BYTES_MAX + 1)})
        assert answer.status_code == 413


def test_pages_answer_503_while_the_engine_is_gone_and_work_again_when_it_is_back(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig:
        rig.story()
        with rig.client("wang.lei") as browser:
            address = f"/incidents/{told(rig, 'sw-hall-3')}"
            token = Markup(browser.get(address).text).value("form_token")
            rig.run(rig.control.stop())
            assert browser.get("/").status_code == 200  # reading goes on
            form = {"form_token": token, "kind": "acknowledge"}
            assert browser.post(address, data=form).status_code == 503
            assert browser.post("/login", data={"name": "ann", "password": "x"}).status_code == 503
            assert browser.get("/readyz").status_code == 503
            rig.run(rig.control.start())
            assert browser.get("/readyz").status_code == 200
            assert browser.post(address, data=form).status_code == 303


def test_an_empty_collector_says_what_to_do_first(tmp_path: Path) -> None:
    with web_rig(tmp_path) as rig, rig.client("root") as browser:
        registry = type(rig.config.registry)(2)
        rig.run(rig.pipeline.configure(type(rig.config)(registry, ())))
        page = browser.get("/").text
        assert "Nothing is watched yet." in page
        assert "tocsin token create" in page


def test_a_store_that_is_not_there_yet_is_a_503_not_a_crash(tmp_path: Path) -> None:
    import asyncio

    from tocsin_collector.web.app import application, make
    from tocsin_collector.web.options import Options

    async def ask() -> httpx2.Response:
        web = make(Options(tmp_path / "none.db", tmp_path / "none.sock"))
        transport = httpx2.ASGITransport(application(web))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/api/v1/hosts", headers={"Authorization": "Bearer x"})
            assert (await client.get("/healthz")).status_code == 200
            return answer

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
