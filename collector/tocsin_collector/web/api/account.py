"""Logging in for programs: a bearer token instead of a cookie."""

from tocsin_collector.web.api import records
from tocsin_collector.web.api.call import Call, Operation
from tocsin_collector.web.api.problem import Failure
from tocsin_collector.web.auth import token_hash

TOKEN_TTL_S = 30 * 86_400


async def login(call: Call) -> records.LoggedIn:
    wish: records.Login = call.body
    web, now_ms = call.web, call.view.now_ms
    client = call.view.request.client
    key = f"{client.host if client else ''} {wish.name}"[:300]
    wait_ms = max(web.brake.wait_ms(key, now_ms), web.brake_all.wait_ms("all", now_ms))
    if wait_ms:
        raise Failure(429, "too many tries", f"wait {-(-wait_ms // 1000)} s")
    web.brake_all.failed("all", now_ms)
    try:
        granted = await call.ask(
            "account.login", name=wish.name, password=wish.password, label="api", ttl_s=TOKEN_TTL_S
        )
    except Failure as failure:
        if failure.status == 503:
            raise
        web.brake.failed(key, now_ms)
        raise Failure(401, "denied", "name or password is not right") from failure
    web.brake.passed(key)
    return records.LoggedIn(str(granted["token"]), str(granted["role"]), now_ms + TOKEN_TTL_S * 1000)


async def logout(call: Call) -> records.Done:
    await call.ask("account.logout", token_hash=token_hash(call.view.who.secret).hex())
    return records.Done("")


OPERATIONS = (
    Operation(
        "login", "POST", "/login", "", "Name and password for a token", login, records.LoggedIn, body=records.Login
    ),
    Operation("logout", "POST", "/logout", "viewer", "End this token", logout, records.Done),
)
