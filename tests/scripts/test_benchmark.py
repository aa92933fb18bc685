from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark

    return benchmark


def test_sides_take_turns_and_the_first_turn_does_not_count(benchmark):
    calls = []

    def side(name, rates):
        values = iter(rates)
        return lambda: calls.append(name) or next(values)

    rates = benchmark.measured({"ours": side("ours", [99, 2, 6, 4]), "peer": side("peer", [99, 1, 2, 4])}, repeats=3)
    assert calls == ["ours", "peer"] * 4
    assert rates["ours"] == {"median": 4, "all": [2, 6, 4]}
    assert benchmark.ratios(rates, "ours") == {"ours / peer": 2}


def test_hardware_is_named(benchmark):
    machine = benchmark.hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1


def test_drawn_pictures_stand_in_for_photographs(benchmark, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPTYCH_DATA", str(tmp_path / "none"))
    assert benchmark._photographs(tmp_path).startswith("drawn pictures")
    files = sorted((tmp_path / "photos").rglob("*.jpg"))
    assert len(files) == benchmark._NUM_IMAGES
    assert files[0].read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("arguments", [[], ["no-such-benchmark"], ["image-input", "--repeats", "x"]])
def test_mistakes_are_one_line(benchmark, capsys, monkeypatch, arguments):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_results_page_is_what_its_figures_give(benchmark):
    import json

    import results

    record, page = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
    assert page.read_text(encoding="utf-8") == results.render(json.loads(record.read_text(encoding="utf-8")))
    sys.modules.pop("results", None)


def test_results_name_an_unknown_experiment(benchmark):
    import results

    with pytest.raises(ValueError, match="no experiment 'fashion'"):
        results.main(["fashion"])


def test_results_render_runs_rates_and_figures(benchmark):
    import results

    common = {"hardware": {"cpu": "X", "cores": 2, "python": "3.11"}, "date": "2026-01-01", "minutes": 1.0}
    runs = [{"seed": seed, "metrics": {"accuracy": 0.5 + seed / 10}, "minutes": 2.0} for seed in (0, 1)]
    rates = {"ours": {"median": 2.0, "all": [1.0, 2.0, 3.0]}}
    page = results.render(
        {
            "fashion-mnist": {
                "title": "F",
                "metric": "accuracy",
                "runs": runs,
                "trained_in": "mixed_bfloat16",
                **common,
            },
            "image-input": {"title": "I", "unit": "images/s", "rates": rates, "ratios": {"ours / peer": 1.5}, **common},
            "preset-reference": {"title": "P", "figures": {"images": 8, "difference": 1.25e-6}, **common},
        }
    )
    assert "`python scripts/results.py fashion-mnist --precision mixed_bfloat16`" in page
    assert "`python scripts/results.py image-input`" in page
    for expected in ("| **mean** | 0.5500 | 2.0 |", "| ours | 2 | 1 | 3 |", "**1.50**", "| difference | 1.25e-06 |"):
        assert expected in page
    assert page.index("## F") < page.index("## P") < page.index("## I")


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [
        ([], "- target: T\n"),
        ([{"metric": "accuracy", "at_least": 0.5}], "- target: T: **met**\n"),
        ([{"metric": "accuracy", "at_least": 0.51}], "- target: T: **not met**\n"),
        (
            [{"metric": "accuracy", "at_least": 0.5}, {"minutes": "", "at_most": 2}],
            "- target: T: **not met**\n",
        ),
        ([{"ratio": "ours / peer", "at_least": 0.9}], "- target: T: **not met**\n"),
        ([{"figure": "equal", "at_least": "trials"}], "- target: T: **met**\n"),
    ],
)
def test_results_say_whether_a_target_is_met(benchmark, bound, verdict):
    import results

    record = {
        "title": "F",
        "target": "T",
        "bound": bound,
        "runs": [{"seed": s, "metrics": {"accuracy": a}, "minutes": m} for s, a, m in ((0, 0.4, 1.0), (1, 0.6, 3.0))],
        "unit": "images/s",
        "rates": {"ours": {"median": 1.0, "all": [1.0]}},
        "ratios": {"ours / peer": 0.85},
        "figures": {"equal": 20, "trials": 20},
        "hardware": {"cpu": "X", "cores": 2, "python": "3.11"},
        "date": "2026-01-01",
        "minutes": 1.0,
    }
    assert verdict in results.render({"fashion-mnist": record})


def test_kept_results_have_the_bounds_of_their_experiments(benchmark):
    import json

    import results

    records = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    assert {name: record.get("bound", []) for name, record in records.items()} == {
        name: results.BOUNDS.get(name, []) for name in records
    }
