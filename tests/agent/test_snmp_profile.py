"""Profiles: what a file may say, how they are chosen, and what rows mean by them. No network."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_agent.probes import Measurement
from tocsin_agent.snmp.meaning import SeriesBook, Ticks, evaluate, table_measurements
from tocsin_agent.snmp.profile import (
    Metric,
    Override,
    ProfileError,
    Profiles,
    Source,
    Table,
    built_in,
    load_folder,
    parse,
)
from tocsin_agent.snmp.values import number, oid, text
from tocsin_proto.records import SeriesKind

BASE = 'name = "base"\n'
GENERIC = 'name = "generic"\n'
TABLE = """
name = "x"
[[table]]
name = "t"
columns = { a = "1.3.6.1.2" }
"""


def test_the_built_in_profiles_load_and_generic_has_all_of_its_parents():
    profiles = built_in()
    assert {"base", "if-mib", "host-resources", "generic"} <= set(profiles.names)
    generic = profiles.named("generic")
    assert [group.name for group in generic.groups] == ["uptime", "interfaces", "filesystems", "memory", "processors"]
    assert {"name", "description", "serial", "firmware"} <= set(generic.identity)


def test_every_metric_of_the_built_in_profiles_is_evaluated_by_a_column_it_has():
    for name in built_in().names:
        for group in built_in().named(name).groups:
            full = dict.fromkeys(group.columns, 7)
            for metric in group.metric:
                assert evaluate(metric, full) is not None, (name, group.name, metric.metric)
                assert evaluate(metric, {}) is None, (name, group.name, metric.metric)


def test_the_longest_matching_object_id_wins_and_strangers_are_generic():
    files = [
        GENERIC,
        'name = "vendor"\nmatch = ["1.3.6.1.4.1.9"]',
        'name = "model"\nmatch = ["1.3.6.1.4.1.9.1.634", "1.3.6.1.4.1.77"]',
    ]
    profiles = Profiles(parse(file, "x.toml") for file in files)
    assert profiles.choose((1, 3, 6, 1, 4, 1, 9, 1, 634)).name == "model"
    assert profiles.choose((1, 3, 6, 1, 4, 1, 9, 1, 63)).name == "vendor"
    assert profiles.choose((1, 3, 6, 1, 4, 1, 99)).name == "generic"
    assert profiles.choose(()).name == "generic"
    assert profiles.choose(None).name == "generic"


def test_a_group_of_the_same_name_replaces_the_parents():
    parent = TABLE + '[[table.metric]]\nmetric = "m.old"\ncolumn = "a"\n'
    child = (
        'name = "y"\nextends = ["x"]\n'
        + TABLE.replace('name = "x"', "")
        + ('[[table.metric]]\nmetric = "m.new"\ncolumn = "a"\n')
    )
    (table,) = Profiles([parse(parent, "x.toml"), parse(child, "y.toml")]).named("y").table
    assert [metric.metric for metric in table.metric] == ["m.new"]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("name = ", "x.toml: not TOML"),
        ("match = []", "missing required field `name`"),
        ('name = "x"\nmatches = []', "unknown field `matches`"),
        ('name = "x"\nmatch = ["1.3.six"]', "'1.3.six' is not an OID"),
        ('name = "x"\nmatch = ["4294967296.1"]', "is not an OID"),
        ('name = "x"\n[identity]\nserial = ["1.3.x.*"]', "identity.serial"),
        (TABLE + '[[table.metric]]\nmetric = "m"\ncolumn = "b"', "t.m: no column 'b', there are: a"),
        (TABLE + '[[table.metric]]\nmetric = "m"', "write column, first_of or greatest_of"),
        (TABLE + '[[table.metric]]\nmetric = "m"\ncolumn = "a"\nkind = "guage"', "Invalid enum value 'guage'"),
        (TABLE + '[[table.metric]]\nmetric = "m"\ncolumn = "a"\nover = "size"', "no column 'size'"),
        (TABLE + 'metric = []\nlabels = { l = ["nam"] }', "t.labels.l: no column 'nam'"),
        (TABLE + 'metric = []\nwhere = { kind = ["1"] }', "t.where: no column 'kind'"),
        (
            TABLE + '[[table.metric]]\nmetric = "m"\ncolumn = "a"\nstates = { up = "1" }',
            "states: 'up' is not a whole number",
        ),
    ],
)
def test_a_wrong_profile_says_where_and_what(file: str, says: str):
    with pytest.raises(ProfileError) as caught:
        parse(file, "x.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("x.toml: ")


def test_profiles_that_extend_nothing_or_themselves_are_refused():
    with pytest.raises(ProfileError, match="extends 'nobody', which there is not; there are: x"):
        Profiles([parse('name = "x"\nextends = ["nobody"]', "x.toml")])
    with pytest.raises(ProfileError, match="extends itself: a -> b -> a"):
        Profiles([parse('name = "a"\nextends = ["b"]', "a"), parse('name = "b"\nextends = ["a"]', "b")])


def test_an_unknown_profile_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no SNMP profile 'generik', there are: .*generic"):
        built_in().named("generik")


def test_a_sites_own_profile_stands_beside_the_shipped_ones_and_replaces_by_name(tmp_path):
    (tmp_path / "press.toml").write_text('name = "press"\nmatch = ["1.3.6.1.4.1.58888.5"]\nextends = ["generic"]\n')
    (tmp_path / "windows.toml").write_text('name = "windows"\nabout = "ours"\nextends = ["base"]\n')
    profiles = load_folder(tmp_path)
    assert profiles.choose((1, 3, 6, 1, 4, 1, 58888, 5, 1)).name == "press"
    assert profiles.named("windows").about == "ours"
    assert profiles.named("generic").table
    (tmp_path / "bad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ProfileError, match=r"bad\.toml"):
        load_folder(tmp_path)


ROW = {"used": 80, "size": 100, "units": 4096, "zero": 0, "text": b"23.5", "junk": b"n/a", "down": 2, "oper": 2}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric("m", column="used"), (SeriesKind.GAUGE, 80)),
        (Metric("m", column="used", over="size"), (SeriesKind.GAUGE, 0.8)),
        (Metric("m", column="used", over="zero"), None),
        (Metric("m", column="size", minus="used", times="units"), (SeriesKind.GAUGE, 81920)),
        (Metric("m", column="size", minus="gone"), None),
        (Metric("m", column="used", scale=0.01), (SeriesKind.GAUGE, 0.8)),
        (Metric("m", column="text"), (SeriesKind.GAUGE, 23.5)),
        (Metric("m", column="junk"), None),
        (Metric("m", column="gone"), None),
        (Metric("m", first_of=(Source("gone"), Source("used", "counter32"))), (SeriesKind.COUNTER32, 80)),
        (Metric("m", first_of=(Source("used", scale=1e6), Source("size"))), (SeriesKind.GAUGE, 80e6)),
        (Metric("m", first_of=(Source("zero"), Source("size")), zero_is_absent=True), (SeriesKind.GAUGE, 100)),
        (Metric("m", first_of=(Source("zero"), Source("gone")), zero_is_absent=True), (SeriesKind.GAUGE, 0)),
        (Metric("m", greatest_of=("gone", "used", "size")), (SeriesKind.GAUGE, 100)),
        (Metric("m", greatest_of=("gone",)), None),
        (Metric("m", kind="counter64", column="text"), None),
        (Metric("m", kind="state", column="oper"), (SeriesKind.STATE, 2)),
        (Metric("m", kind="state", column="oper", override=(Override("down", 2, 8),)), (SeriesKind.STATE, 8)),
        (Metric("m", kind="state", column="oper", override=(Override("down", 1, 8),)), (SeriesKind.STATE, 2)),
        (Metric("m", kind="state", column="oper", override=(Override("down", 2, 8, unless=2),)), (SeriesKind.STATE, 2)),
        (Metric("m", kind="state", column="gone", override=(Override("down", 2, 8),)), None),
    ],
)
def test_a_metric_is_worked_out_as_its_words_say(metric: Metric, expected):
    assert evaluate(metric, ROW) == expected


def test_counters_stay_whole_and_states_stay_in_range():
    assert evaluate(Metric("m", kind="counter64", column="c"), {"c": 2**64 - 1}) == (SeriesKind.COUNTER64, 2**64 - 1)
    assert evaluate(Metric("m", kind="counter64", column="c"), {"c": -1}) is None
    assert evaluate(Metric("m", kind="state", column="c"), {"c": 2**31}) is None
    assert evaluate(Metric("m", column="c"), {"c": math.nan}) is None
    assert evaluate(Metric("m", column="c"), {"c": math.inf}) is None


def table(**options) -> Table:
    columns = {"name": "1.3.1", "descr": "1.3.2", "size": "1.3.3", "kind": "1.3.4"}
    return Table("t", columns, (Metric("m.size", column="size"),), **options)


def measured(spec: Table, columns) -> dict[tuple[tuple[str, str], ...], float]:
    found = list(table_measurements(spec, columns, SeriesBook("dev", 1000)))
    assert all(isinstance(each, Measurement) and each.series.resource == "dev" for each in found)
    assert len({id(each.series) for each in found}) == len(found)
    return {each.series.labels: each.value for each in found}


def test_rows_are_named_by_the_first_label_column_with_a_text():
    spec = table(labels={"interface": ("name", "descr", "#index"), "alias": ("descr",)})
    columns = {
        "name": {(1,): b"p1", (2,): b"\0", (3,): b""},
        "descr": {(2,): b"port two"},
        "size": {(1,): 1, (2,): 2, (3,): 3},
    }
    assert measured(spec, columns) == {
        (("interface", "p1"),): 1,
        (("alias", "port two"), ("interface", "port two")): 2,
        (("interface", "3"),): 3,
    }


def test_rows_with_equal_labels_get_their_index_so_that_no_two_are_one_series():
    spec = table(labels={"interface": ("name",)})
    columns = {"name": {(1,): b"Po", (7, 2): b"Po", (9,): b"other"}, "size": {(1,): 1, (7, 2): 2, (9,): 3}}
    assert measured(spec, columns) == {
        (("index", "1"), ("interface", "Po")): 1,
        (("index", "7.2"), ("interface", "Po")): 2,
        (("interface", "other"),): 3,
    }


def test_where_keeps_rows_and_where_not_drops_them_and_texts_end_where_told():
    spec = table(
        labels={"mount": ("name",)},
        label_until=(" Label:", ", type:"),
        where={"kind": ("1.3.4",)},
        where_not={"descr": ("x",)},
    )
    columns = {
        "name": {
            (1,): b"C:\\ Label:System  Serial 1a",
            (2,): b"/usr, type: ufs, dev: /dev/da0",
            (3,): b"RAM",
            (4,): b"no",
        },
        "kind": {(1,): (1, 3, 4), (2,): (1, 3, 4), (3,): (1, 3, 5), (4,): (1, 3, 4)},
        "descr": {(4,): b"x"},
        "size": {(1,): 1, (2,): 2, (3,): 3, (4,): 4},
    }
    assert measured(spec, columns) == {(("mount", "C:\\"),): 1, (("mount", "/usr"),): 2}


def test_a_negative_size_is_one_beyond_two_billion_units():
    spec = table(unsigned=("size",), labels={"n": ("#index",)})
    assert measured(spec, {"size": {(1,): -1, (2,): 5}}) == {(("n", "1"),): 2**32 - 1, (("n", "2"),): 5}


def test_the_mean_of_all_rows_is_one_more_series():
    metric = Metric("cpu", column="size", scale=0.01, mean_as={"cpu": "all"})
    spec = Table("t", {"size": "1.3.3"}, (metric,), labels={"cpu": ("#ordinal",)})
    assert measured(spec, {"size": {(196608,): 10, (196609,): 30}}) == {
        (("cpu", "0"),): 0.1,
        (("cpu", "1"),): 0.3,
        (("cpu", "all"),): 0.2,
    }
    assert measured(spec, {"size": {}}) == {}


def test_series_are_the_same_objects_at_every_poll_and_gone_ones_are_forgotten():
    book = SeriesBook("dev", 1000)
    spec = table(labels={"n": ("#index",)})
    first = [each.series for each in table_measurements(spec, {"size": {(1,): 1, (2,): 2}}, book)]
    book.forget_unused()
    again = [each.series for each in table_measurements(spec, {"size": {(1,): 5, (2,): 6}}, book)]
    assert [id(each) for each in first] == [id(each) for each in again]
    for poll in range(200):
        list(table_measurements(spec, {"size": {(poll,): 1}}, book))
        book.forget_unused()
    assert len(book._known) <= 103


def test_uptime_goes_on_over_the_wrap_of_497_days():
    ticks = Ticks()
    assert ticks.seconds(2**32 - 3000, 0.0) == pytest.approx((2**32 - 3000) / 100)
    assert ticks.seconds(3000, 60.0) == pytest.approx((2**32 + 3000) / 100)
    assert ticks.seconds(6000, 90.0) == pytest.approx((2**32 + 6000) / 100)


def test_uptime_begins_again_after_a_restart_even_after_a_wrap():
    ticks = Ticks()
    ticks.seconds(2**32 - 3000, 0.0)
    ticks.seconds(3000, 60.0)
    assert ticks.seconds(500, 120.0) == 5.0
    assert ticks.seconds(6500, 180.0) == 65.0


def test_a_restart_shortly_before_the_wrap_is_a_restart():
    ticks = Ticks()
    ticks.seconds(2**32 - 100_000, 0.0)  # the wrap would be 1000 s away
    assert ticks.seconds(1000, 30.0) == 10.0


@given(st.binary(max_size=400))
def test_any_bytes_become_one_printable_line(data: bytes):
    line = text(data)
    assert line.isprintable()
    assert len(line) <= 255
    assert line == line.strip()
    value = number(data)
    assert value is None or math.isfinite(value)


@pytest.mark.parametrize("written", ["1.3.6.1", ".1.3.6.1"])
def test_oids_may_have_a_leading_dot(written: str):
    assert oid(written) == (1, 3, 6, 1)
