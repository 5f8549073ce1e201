"""Language and theme of this browser: two cookies, nothing about the person is stored."""

from starlette.responses import Response

from tocsin_collector.i18n import LANGUAGES
from tocsin_collector.web.view import LANGUAGE_COOKIE, THEME_COOKIE, THEMES, View, back_to

YEAR_S = 31_536_000


async def preferences(view: View) -> Response:
    form = await view.form()
    answer = back_to(form.get("back", "/"))
    for cookie, wish, allowed in (
        (LANGUAGE_COOKIE, form.get("lang", ""), tuple(LANGUAGES)),
        (THEME_COOKIE, form.get("theme", ""), THEMES),
    ):
        if wish in allowed:
            secure = view.web.options.is_secure
            answer.set_cookie(cookie, wish, max_age=YEAR_S, httponly=True, samesite="lax", secure=secure)
    return answer
