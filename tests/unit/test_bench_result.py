# SPDX-License-Identifier: Apache-2.0
"""The bench's matrix, result file, tables and plots: what is pure of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import plot, result, table
from bench.matrix import BASELINE, FULL, LOADS, QUICK, SYSTEMS, Condition, select
from bench.result import Result, decode, encode, summarise
from bench.sockperf import parse
from dataplane.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"
PERCENTILES = {"0": 20.0, "50": 30.0, "99": 60.0, "99.9": 90.0}


def sample_of(load: str, value: float) -> dict[str, Any]:
    """Return a sample as loads.py makes it."""
    figures = {figure.name: value for figure in LOADS[load].figures}
    detail: dict[str, Any] = {"percentiles_us": PERCENTILES} if load.startswith("latency") else {}
    return {"figures": figures, "detail": detail}


def make_result(
    loads: tuple[str, ...] = ("tcp-1", "udp-64", "latency-idle", "cpu"),
    values: Callable[[int, int], float] = lambda system, number: 10.0 * (system + 1) + number,
) -> Result:
    """Return a result with three rounds of all systems."""
    made = Result({"cpu": "x", "cpus": 2, "kernel": "6.1", "commit": "abc"}, {"name": "quick"}, "then")
    for index, system in enumerate(SYSTEMS):
        made.devices[f"wire/{system}"] = {"namespaces": {}}
        for load in loads:
            for number in range(3):
                made.add("wire", load, system, {"round": number, **sample_of(load, values(index, number))})
    made.finished = "later"
    return made


# --- the matrix -------------------------------------------------------------------------------------------


def test_full_plan_has_what_the_readme_of_the_bench_promises() -> None:
    """The full plan runs every load on every system in both profiles, five times or more."""
    whole = {block.condition.name: set(block.loads) for block in FULL.blocks}
    assert whole["veth"] == whole["wire"] == set(LOADS)
    assert {"wire+moderated", "wire+masquerade"} <= set(whole)
    assert FULL.systems == SYSTEMS
    assert FULL.repetitions >= 5
    assert 3600 < FULL.estimate_s() < 6000


def test_quick_plan_is_a_part_with_a_limit() -> None:
    """The quick plan is part of the full one and has a time limit below 90 s."""
    assert set(QUICK.blocks[0].loads) < set(LOADS)
    assert QUICK.blocks[0].condition in [block.condition for block in FULL.blocks]
    assert QUICK.limit_s is not None
    assert QUICK.estimate_s() <= QUICK.limit_s < 90


def test_selection_keeps_the_baseline() -> None:
    """A choice of systems always has kernel VXLAN in it, in the plan's order."""
    assert select(FULL, systems=["overlayd-ipip"]).systems == (BASELINE, "overlayd-ipip")
    assert select(FULL, systems=["overlayd-udp"]).systems == (BASELINE, "overlayd-udp")
    assert select(FULL).systems == SYSTEMS


def test_selection_of_a_profile_adds_its_condition() -> None:
    """A profile that the quick plan leaves out comes in by name, with the loads of the plan."""
    chosen = select(QUICK, profiles=["veth"])
    assert [(block.condition, block.loads) for block in chosen.blocks] == [
        (Condition("veth"), QUICK.blocks[0].loads)
    ]


def test_selection_of_a_load_leaves_only_that() -> None:
    """A choice of loads is run in every condition of the plan, and nothing else is."""
    chosen = select(FULL, loads=["tcp-4"])
    assert {block.loads for block in chosen.blocks} == {("tcp-4",)}
    assert chosen.count_samples() == len(FULL.blocks) * len(SYSTEMS) * FULL.repetitions


@pytest.mark.parametrize("kind", ["profiles", "systems", "loads"])
def test_unknown_name_is_refused_with_those_that_are_allowed(kind: str) -> None:
    """A name that nothing has is refused, and the message lists what is allowed."""
    chosen: dict[str, Any] = {kind: ["carrier-pigeon"]}
    with pytest.raises(ConfigError, match=r'"carrier-pigeon" is unknown; allowed are \w'):
        select(FULL, **chosen)


# --- the file ---------------------------------------------------------------------------------------------


def test_result_survives_its_file(tmp_path: Path) -> None:
    """What is written is what is read, sample by sample."""
    made = make_result()
    made.add("wire", "tcp-1", "none", {"round": 3, "error": "no route"})
    result.write(made, tmp_path / "r.json")
    assert encode(result.read(tmp_path / "r.json")) == encode(made)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def damage(where: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that changes, or with ... deletes, one value of a result file."""

    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for step in where[:-1]:
            place = place[step]
        if value is ...:
            del place[where[-1]]
        else:
            place[where[-1]] = value

    return change


SAMPLE = ("rows", 0, "samples", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(damage(("schema",), ...), 'lacks "schema"', id="no-schema"),
        pytest.param(damage(("schema",), "overlayd-bench/9"), "reads overlayd-bench/1", id="other-schema"),
        pytest.param(damage(("machine",), []), '"machine" that is no object', id="machine"),
        pytest.param(damage(("finished",), 7), '"finished" that is no text', id="finished"),
        pytest.param(damage(("devices", "wire/none"), ...), 'devices "wire/none"', id="devices-gone"),
        pytest.param(damage(("devices", "wire/none"), {}), 'lacks "namespaces"', id="devices-empty"),
        pytest.param(damage(("rows", 1, "load"), "tcp-9"), 'rows[1] has the unknown load "tcp-9"', id="load"),
        pytest.param(damage(("rows", 1), 5), "rows[1] is no object", id="row"),
        pytest.param(damage((*SAMPLE, "round"), ...), 'rows[0], samples[0] lacks "round"', id="no-round"),
        pytest.param(damage((*SAMPLE, "round"), 1), "rows[0] has a round twice", id="round-twice"),
        pytest.param(damage((*SAMPLE, "round"), True), "no number from 0", id="round-bool"),
        pytest.param(damage((*SAMPLE, "figures"), {}), "those of tcp-1 are", id="no-figure"),
        pytest.param(damage((*SAMPLE, "figures"), {"gbit_s": "9"}), "no measured number", id="text"),
        pytest.param(damage((*SAMPLE, "figures"), {"gbit_s": -1.0}), "no measured number", id="negative"),
        pytest.param(damage((*SAMPLE, "figures"), {"gbit_s": float("nan")}), "no measured", id="nan"),
    ],
)
def test_damaged_file_is_refused_by_its_place(change: Callable[[Any], None], message: str) -> None:
    """Every damage is refused with the file's name and the place that is wrong."""
    data = copy.deepcopy(encode(make_result()))
    change(data)
    with pytest.raises(ConfigError) as caught:
        decode(data, "r.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.json")


def test_row_twice_is_refused() -> None:
    """A file that has a row twice is refused."""
    data = encode(make_result())
    data["rows"].append(data["rows"][0])
    with pytest.raises(ConfigError, match="has a row twice"):
        decode(data, "r.json")


def test_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """Half a file, and no file, are refused in one line."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps(encode(make_result()))[:-100], encoding="utf-8")
    with pytest.raises(ConfigError, match="is no JSON"):
        result.read(path)
    with pytest.raises(ConfigError, match="No such file"):
        result.read(tmp_path / "none.json")


# --- figures and tables -----------------------------------------------------------------------------------


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A machine that halves its speed in one round changes no ratio; the ratio of medians would."""
    speed = (1.0, 0.5, 2.0)
    made = make_result(("tcp-1",), lambda system, number: (system + 1) * speed[number])
    row = made.row("wire", "tcp-1", "overlayd-vxlan")
    assert row is not None
    found = summarise(made, row, "gbit_s")
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (3.0, 1.5, 6.0, 3)
    assert found.ratio == pytest.approx(1.5)


def test_failed_sample_takes_no_part() -> None:
    """A round that failed for the baseline gives no ratio, and the others still do."""
    made = make_result(("tcp-1",), lambda system, number: system + 1.0)
    base, ours = made.row("wire", "tcp-1", BASELINE), made.row("wire", "tcp-1", "overlayd-vxlan")
    assert base is not None
    assert ours is not None
    base.samples[0] = {"round": 0, "error": "no route"}
    ours.samples[1]["figures"]["gbit_s"] = 9.0
    found = summarise(made, ours, "gbit_s")
    assert found is not None
    assert found.ratio == pytest.approx((9.0 / 2 + 3.0 / 2) / 2)
    assert "1 failed" in table.render(made)


def test_table_has_a_line_for_every_system_and_figure() -> None:
    """Each system stands once below each figure, with its ratio, and notes are shown once."""
    made = make_result()
    row = made.row("wire", "udp-64", "none")
    assert row is not None
    for sample in row.samples:
        sample["notes"] = ["weak generator"]
    row.samples[0]["notes"].append("a busy machine")
    text = table.render(made)
    figures = sum(len(LOADS[load].figures) for load in ("tcp-1", "udp-64", "latency-idle", "cpu"))
    for system in SYSTEMS:
        assert sum(line.split()[:1] == [system] for line in text.splitlines()) == figures
    assert text.count("[weak generator]") == 1
    assert text.count("[a busy machine: 1 of 3]") == 1
    assert "INTERRUPTED" not in text
    made.finished = None
    assert "INTERRUPTED" in table.render(made)


def test_comparison_shows_what_changed() -> None:
    """Each common figure shows both medians and the change; another machine is named first."""
    before, after = make_result(), make_result(values=lambda system, number: 20.0 * (system + 1))
    text = table.compare(before, after)
    assert "not the same" not in text
    assert text.count("overlayd-vxlan") == 5
    after.machine["kernel"] = "6.2"
    assert "not the same kernel: 6.1 and 6.2" in table.compare(before, after)
    after.rows = []
    assert "no figure in common" in table.compare(before, after)


# --- plots ------------------------------------------------------------------------------------------------


def classes(svg: str) -> list[str]:
    """Return the classes of all elements of a drawing, which must be well-formed."""
    return [element.get("class", "") for element in ElementTree.fromstring(svg).iter()]


def test_plots_have_a_bar_for_every_system() -> None:
    """Each plot is well-formed XML with one bar and one spread for each system and figure."""
    plots = plot.draw(make_result(("tcp-1", "tcp-4", "udp-64", "latency-idle", "cpu")))
    expected = {"throughput-wire.svg": 2, "packets-wire.svg": 1, "cpu-wire.svg": 1}
    for name, groups in expected.items():
        assert classes(plots[name]).count("bar") == groups * len(SYSTEMS), name
        assert classes(plots[name]).count("spread") == groups * len(SYSTEMS), name
    assert classes(plots["latency-idle-wire.svg"]).count("line") == len(SYSTEMS)
    assert set(plots) == {*expected, "latency-idle-wire.svg"}


def test_plot_of_odd_names_and_zeros_is_well_formed() -> None:
    """A system's name with markup in it, and figures of 0, still make well-formed XML."""
    made = make_result(values=lambda system, number: 0.0)
    made.add("wire", "tcp-1", "<a&b>", {"round": 0, **sample_of("tcp-1", 1.0)})
    for svg in plot.draw(made).values():
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"


# --- sockperf ---------------------------------------------------------------------------------------------

SAID = """sockperf: Summary: Latency is 31.5 usec
sockperf: Total 15000 observations; each percentile contains 150.00 observations
sockperf: ---> <MAX> observation =  210.1
sockperf: ---> percentile 99.900 =   88.8
sockperf: ---> percentile 99.000 =   61.2
sockperf: ---> percentile 50.000 =   30.1
sockperf: ---> <MIN> observation =   21.0
"""


def test_percentiles_are_read_in_order() -> None:
    """All percentiles that sockperf prints are read, least and most too."""
    assert parse(SAID) == {"0": 21.0, "50": 30.1, "99": 61.2, "99.9": 88.8, "100": 210.1}


def test_run_without_percentiles_is_refused() -> None:
    """A sockperf that received nothing is an error, not a figure."""
    with pytest.raises(AssertionError, match="nothing useful"):
        parse("sockperf: No messages were received from the server.")
