"""What a run of the benchmark becomes: bars and a picture."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.bench.__main__ import README, RESULTS
from tests.bench.bars import Bar, bars
from tests.bench.page import BEGIN, END, with_table
from tests.bench.picture import CONTENDERS, decades, picture, readable

SVG = "{http://www.w3.org/2000/svg}"


def read(contender: str, way: str, clients: int, kind: str, microseconds: float) -> dict[str, Any]:
    return {
        "file": "meminfo",
        "way": way,
        "clients": clients,
        "as": kind,
        "contender": contender,
        "p50_us": microseconds,
        "per_second": clients * 1e6 / microseconds,
    }


def run(pinned: float = 5.0) -> dict[str, Any]:
    microseconds = {"kernel": 10.0, "lxcfs": 400.0, "sysfsd mount": 800.0, "sysfsd pinned": pinned}
    cases = [("cat", 1, "threads"), ("pread", 1, "threads")]
    cases += [("cat", 8, "threads"), ("cat", 8, "processes")]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "Some <CPU> & Sons",
            "cpus": 2,
            "virtual": True,
            "kernel": "6.18.0",
            "cgroup": "v1",
            "load_before": 0.3,
        },
        "versions": {"sysfsd": "0.1", "commit": "abc1234", "lxcfs": "5.0.3-1"},
        "reads": [
            read(contender, *case, each)
            for contender, each in microseconds.items()
            for case in cases
        ],
    }


def found(results: dict[str, Any]) -> dict[str, Bar]:
    return {bar.name: bar for bar in bars(results)}


def test_bars_are_ratios_of_one_run() -> None:
    each = found(run())
    assert each["pinned cat of meminfo, p50 by the kernel's"].found == 0.5
    assert each["pinned cat of meminfo, p50 by the kernel's"].reached
    assert each["sysfsd mount's cat of meminfo, p50 by lxcfs's"].found == 2
    assert not each["sysfsd mount's cat of meminfo, p50 by lxcfs's"].reached
    assert each["pinned cats of meminfo a second, 1 client, by lxcfs's"].found == 80
    assert "NOT REACHED" in each["pinned pread of meminfo, p50 by the kernel's"].line()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_of_threads_and_processes_the_worse_counts(kind: str) -> None:
    results = run()
    for row in results["reads"]:
        if (row["contender"], row["clients"], row["as"]) == ("lxcfs", 8, kind):
            row["per_second"] *= 4
    bar = found(results)["pinned cats of meminfo a second, 8 clients, by lxcfs's"]
    assert bar.found == 20
    assert not bar.reached


def test_a_bar_is_reached_when_it_is_met_exactly() -> None:
    assert found(run(pinned=8.0))["pinned cat of meminfo, p50 by the kernel's"].reached
    assert not found(run(pinned=8.1))["pinned cat of meminfo, p50 by the kernel's"].reached


def test_what_was_not_measured_has_no_bar() -> None:
    assert bars({}) == []
    assert not any("cpuinfo" in name for name in found(run()))


def scaled(containers: int, p50: float) -> dict[str, Any]:
    return {
        "containers": containers,
        "register_seconds": 6.0,
        "rss_bytes": 151e6,
        "idle_cpu_percent": 0.5,
        "cat": {"p50_us": p50},
        "first_read": {"p99_us": 1500.0} if containers > 1 else None,
    }


def test_the_largest_crowd_is_what_counts_and_all_of_its_registering() -> None:
    results = {
        "scale": [scaled(1, 5.0), scaled(1000, 7.0)],
        "starts": {"plain": {"median_ms": 400.0}, "sysfsd": {"median_ms": 540.0}},
    }
    each = found(results)
    assert {name: (bar.found, bar.reached) for name, bar in each.items()} == {
        "1000 containers registered": (12.0, False),
        "the daemon's memory with 1000": (151.0, False),
        "the idle daemon's CPU with 1000": (0.5, True),
        "pinned cat with 1000, p50 by that with one": (1.4, False),
        "first read of each of 1000, p99": (1.5, True),
        "docker run --runtime=sysfsd, more than plain": (140.0, True),
    }


def test_the_picture_is_well_formed_and_shows_everybody_and_the_machine() -> None:
    root = ET.fromstring(picture(run()))
    assert root.tag == f"{SVG}svg"
    words = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    for _, legend, style in CONTENDERS:
        assert legend in words
        bars_ = [each for each in root.iter(f"{SVG}rect") if each.get("class") == style]
        # In the legend, and in cat, pread, 1 client, 8 processes.
        assert len(bars_) == 5
    for said in ("Some <CPU> & Sons", "2 virtual CPUs", "6.18.0", "5.0.3-1", "2026-01-02"):
        assert said in words


def test_all_of_it_is_inside_the_picture() -> None:
    root = ET.fromstring(picture(run(pinned=0.3)))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for each in (*root.iter(f"{SVG}rect"), *root.iter(f"{SVG}text")):
        assert 0 <= float(each.attrib["x"]) < width
        assert 0 <= float(each.attrib["y"]) < height
    for each in root.iter(f"{SVG}rect"):
        assert 0 < float(each.attrib["width"]) <= width - float(each.attrib["x"])


def test_a_longer_time_is_a_longer_bar() -> None:
    root = ET.fromstring(picture(run()))
    drawn = {
        style: [
            float(each.attrib["width"])
            for each in root.iter(f"{SVG}rect")
            if each.get("class") == style
        ][1]
        for _, _, style in CONTENDERS
    }
    assert drawn["pinned"] < drawn["kernel"] < drawn["lxcfs"] < drawn["mount"]


def test_it_can_be_read_on_light_and_on_dark() -> None:
    assert "prefers-color-scheme: dark" in picture(run())


def test_without_reads_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no reads"):
        picture(run() | {"reads": []})


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [([5.0, 50.0], (0, 2)), ([10.0, 100.0], (0, 2)), ([7.0], (0, 1)), ([0.6, 9.0], (-1, 1))],
)
def test_the_axis_has_whole_decades(numbers: list[float], wanted: tuple[int, int]) -> None:
    assert decades(numbers) == wanted


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(0.5712, "0.571"), (6.5, "6.5"), (412.3, "412"), (2345.0, "2,340"), (146912.0, "147,000")],
)
def test_numbers_are_short(number: float, wanted: str) -> None:
    assert readable(number) == wanted


def whole_run() -> dict[str, Any]:
    results = run()
    for row in results["reads"]:
        row["daemon_cpu_us"] = 1.5
    others = [row | {"file": file} for file in ("stat", "cpuinfo") for row in results["reads"]]
    return results | {
        "reads": [*results["reads"], *others],
        "scale": [scaled(1, 5.0), scaled(1000, 6.0)],
        "starts": {"plain": {"median_ms": 400.0}, "sysfsd": {"median_ms": 540.0}},
    }


def test_the_page_gets_the_figures_of_the_last_run_and_keeps_the_rest() -> None:
    page = with_table(f"before\n{BEGIN}old\n{END}after\n", whole_run())
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| lxcfs | 400 / 400 / 400 µs | 40 / 40 / 40 | 20,000 / 20,000 / 20,000 |" in page
    assert "1000 containers: registered in 12.0 s, 151 MB" in page
    assert with_table(page, whole_run()) == page
    assert "load" not in page


def test_a_busy_machine_is_no_secret() -> None:
    results = whole_run()
    results["machine"]["load_before"] = 7.5
    assert "while others used it too (load 7.5):" in with_table(f"{BEGIN}{END}", results)


def test_a_page_without_a_place_for_them_is_left_alone() -> None:
    with pytest.raises(ValueError, match="made by"):
        with_table("nothing here\n", whole_run())


def test_the_readme_shows_the_run_that_is_committed() -> None:
    """Both come from the same run of ``sh tests/run.sh bench``."""
    results = json.loads((RESULTS / "latest.json").read_text())
    assert with_table(README.read_text(), results) == README.read_text()
    assert picture(results) == (RESULTS / "latest.svg").read_text()
