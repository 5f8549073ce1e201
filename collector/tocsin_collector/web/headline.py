"""The one sentence at the top: what a shift leader reads aloud. Pure.

Invariant: the numbers in it are those of the table under it, and nobody is called up whose state is not known.
"""

from collections.abc import Mapping, Sequence

from tocsin_collector.i18n import Language

NAMED_MAX = 2  # more than two names and the sentence counts instead


def headline(language: Language, by_state: Mapping[str, Sequence[str]]) -> str:
    """`by_state`: state word -> names of the devices in it; "behind": down as well, and explained by one of those.

    "sw-hall-3 is down; 4 of 5 devices are up."
    """
    t = language.t
    total = sum(len(names) for names in by_state.values())
    up = len(by_state.get("up", ()))
    if total == 0:
        return t("Nothing is watched yet. Enrol the first agent; it takes about a minute.")
    clauses = [clause for state in _CLAUSES if (clause := _clause(language, state, by_state.get(state, ())))]
    if not clauses:
        if total == 1:
            return t("{name} is up.", name=by_state["up"][0])
        return t("All {n} devices are up.", n=total)
    if total == 1:
        return t("{clause}.", clause=clauses[0])
    behind = len(by_state.get("behind", ()))
    if behind:
        clauses[0] = language.tn(
            "{clause} with {n} device behind it", "{clause} with {n} devices behind it", behind, clause=clauses[0]
        )
    rest = language.tn("{n} of {total} devices is up", "{n} of {total} devices are up", up, total=total)
    return t("{clauses}; {rest}.", clauses=t(", ").join(clauses), rest=rest)


_CLAUSES = ("down", "degraded", "unknown", "maintenance", "outside")


def _clause(language: Language, state: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    t, tn, n = language.t, language.tn, len(names)
    if n <= NAMED_MAX:
        who = names[0] if n == 1 else t("{a} and {b}", a=names[0], b=names[1])
        match state:
            case "down":
                return tn("{who} is down", "{who} are down", n, who=who)
            case "degraded":
                return tn("{who} is degraded", "{who} are degraded", n, who=who)
            case "maintenance":
                return tn("{who} is in maintenance", "{who} are in maintenance", n, who=who)
            case "outside":
                return tn("{who} is outside service time", "{who} are outside service time", n, who=who)
            case _:
                return tn("nothing is known of {who}", "nothing is known of {who}", n, who=who)
    match state:
        case "down":
            return tn("{n} device is down", "{n} devices are down", n)
        case "degraded":
            return tn("{n} is degraded", "{n} are degraded", n)
        case "maintenance":
            return tn("{n} is in maintenance", "{n} are in maintenance", n)
        case "outside":
            return tn("{n} is outside service time", "{n} are outside service time", n)
        case _:
            return tn("{n} is unknown", "{n} are unknown", n)
