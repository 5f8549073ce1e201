"""Logging in and out. The engine checks the password; what comes back is a session that only its hash is stored of."""

from starlette.responses import RedirectResponse, Response

from tocsin_collector.control import ControlError
from tocsin_collector.web.auth import COOKIE, ENGINE_AWAY, token_hash
from tocsin_collector.web.view import View, back_to


async def login(view: View) -> Response:
    after = view.request.query_params.get("next", "/")
    if view.request.method == "GET":
        return back_to(after) if view.session else view.page("login.html", after=after, wrong="")
    form = await view.form()
    name, web, t = form.get("name", "").strip(), view.web, view.language.t
    address = view.request.client.host if view.request.client else ""
    key = f"{address} {name}"[:300]
    wait_ms = max(web.brake.wait_ms(key, view.now_ms), web.brake_all.wait_ms("all", view.now_ms))
    if wait_ms:
        seconds = -(-wait_ms // 1000)
        answer = view.page("login.html", 429, after=after, wrong=t("Too many tries. Wait {n} s.", n=seconds))
        answer.headers["Retry-After"] = str(seconds)
        return answer
    try:
        web.brake_all.failed("all", view.now_ms)  # counts tries: each one costs the engine's machine some CPU
        granted = await web.control.call(
            "account.login",
            name=name,
            password=form.get("password", ""),
            label="pages",
            ttl_s=web.options.session_ms // 1000,
        )
    except ControlError as error:
        if error.code in ENGINE_AWAY:
            return view.page("login.html", 503, after=after, wrong=t("The collector does not answer just now."))
        web.brake.failed(key, view.now_ms)
        return view.page("login.html", 401, after=after, wrong=t("Name or password is not right."))
    web.brake.passed(key)
    answer = back_to(after)
    answer.set_cookie(
        COOKIE,
        str(granted["token"]),
        max_age=web.options.session_ms // 1000,
        httponly=True,
        samesite="lax",
        secure=web.options.is_secure,
    )
    return answer


async def logout(view: View) -> Response:
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    try:
        await view.web.control.call("account.logout", token_hash=token_hash(view.who.secret).hex())
    except ControlError:
        # The browser forgets the session either way; the row ends by itself.
        return answer
    return answer
