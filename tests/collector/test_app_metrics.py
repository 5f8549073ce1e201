import re

from prometheus_client.parser import text_string_to_metric_families

from tocsin_collector import metrics
from tocsin_collector.metrics import ChannelFigures, Figures

FIGURES = Figures(
    version="0.1.0",
    sqlite_version="3.40.1",
    started_s=1_795_450_516.5,
    now_s=1_795_450_600.0,
    samples=200_000,
    commits=7,
    commit_s_last=0.003,
    is_troubled=True,
    replay_differences=1,
    incidents={"open": 2, "suppressed": 1},
    channels=(ChannelFigures("desk", 1, 5, 2, 1), ChannelFigures('od"d', 0, 0, 0, 0)),
)


def samples_of(figures: Figures) -> dict[str, float]:
    """name{label="value"} -> value, as a scraper reads it."""
    families = text_string_to_metric_families(metrics.text(lambda: figures))
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_figure_reaches_the_scraper() -> None:
    read = samples_of(FIGURES)
    assert read["tocsin_samples_total"] == 200_000
    assert read["tocsin_commits_total"] == 7
    assert read["tocsin_commit_last_seconds"] == 0.003
    assert read["tocsin_store_troubled"] == 1
    assert read["tocsin_replay_differences_total"] == 1
    assert read["tocsin_incidents{state=open}"] == 2
    assert read["tocsin_notices_sent_total{channel=desk}"] == 5
    assert read['tocsin_notices_dead_total{channel=od"d}'] == 0
    assert read["tocsin_engine_info{sqlite=3.40.1}{version=0.1.0}"] == 1


def test_each_field_is_shown_once_and_under_a_lawful_name() -> None:
    shown = [field for _, _, field in (*metrics._COUNTERS, *metrics._GAUGES)]
    apart = {"version", "sqlite_version", "now_s", "incidents", "channels"}
    assert sorted(shown) == sorted(set(Figures.__struct_fields__) - apart)
    names = [name for name, _, _ in (*metrics._COUNTERS, *metrics._GAUGES, *metrics._CHANNEL_COUNTERS)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"tocsin_[a-z_]+", name) for name in names)
