"""Enrolment tokens: how a new host is let in."""

from tocsin_collector.web.api import records
from tocsin_collector.web.api.call import Call, Operation, Paging
from tocsin_collector.web.api.problem import Failure

TTL_S_MAX = 30 * 86_400
USES_MAX = 1000


async def create_token(call: Call) -> records.TokenMade:
    wish: records.TokenWish = call.body
    if not 60 <= wish.ttl_s <= TTL_S_MAX:
        raise Failure(422, "invalid body", f"ttl_s is {wish.ttl_s}", f"60 to {TTL_S_MAX} seconds")
    if not 1 <= wish.uses <= USES_MAX:
        raise Failure(422, "invalid body", f"uses is {wish.uses}", f"1 to {USES_MAX}")
    if wish.device and wish.uses > 1:
        raise Failure(422, "invalid body", "a token for one named device has one use", "leave out device or uses")
    actor = call.view.who.account
    made = await call.ask(
        "token.create", device=wish.device, site=wish.site, ttl_s=wish.ttl_s, uses=wish.uses, actor=actor
    )
    return records.TokenMade(str(made["id"]), str(made["token"]))


async def list_tokens(call: Call) -> records.Page[records.Token]:
    paging: Paging = call.query
    tokens = await call.source.enrolment_tokens()
    ids = [token.id for token in tokens]
    if paging.after and paging.after not in ids:
        raise Failure(400, "invalid parameter", "after is no cursor of this list", "take `next` of a page")
    start = ids.index(paging.after) + 1 if paging.after else 0
    shown = tokens[start : start + paging.limit]
    more = shown[-1].id if start + paging.limit < len(tokens) else ""
    return records.Page([records.Token(*token) for token in shown], more)


async def revoke_token(call: Call) -> records.Done:
    await call.ask("token.revoke", id=call["token"], actor=call.view.who.account)
    return records.Done("")


OPERATIONS = (
    Operation(
        "createToken",
        "POST",
        "/tokens",
        "admin",
        "Make an enrolment token; it is shown this once",
        create_token,
        records.TokenMade,
        body=records.TokenWish,
        status=201,
    ),
    Operation(
        "listTokens",
        "GET",
        "/tokens",
        "admin",
        "Enrolment tokens, without their secrets",
        list_tokens,
        records.Page[records.Token],
        Paging,
    ),
    Operation("revokeToken", "POST", "/tokens/{token}/revoke", "admin", "End a token", revoke_token, records.Done),
)
