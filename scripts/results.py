"""Run the experiments behind docs/results.md and write that page.

    python scripts/results.py                       # only render the page from docs/results.json
    python scripts/results.py fashion-mnist         # run one experiment again, then render
    python scripts/results.py --all                 # run them all (about two hours on 2 cores)

Each experiment names its data, split, seeds, metric and command, and records wall time and hardware; the figures are
kept in docs/results.json, so the page can be rendered without running anything.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import collaborative_experiments
import dense_experiments
import frame_experiments
import nlp_experiments
import ray_experiments
import recsys_experiments
import retrieval_experiments
import translation_experiments
import vision_experiments
import worker_experiments
from benchmark import hardware
from experiment import ROOT

from shared.cli import OneLineParser, run_script
from shared.runtime import RuntimeConfig

_RECORD = ROOT / "docs" / "results.json"
_PAGE = ROOT / "docs" / "results.md"

EXPERIMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fashion-mnist": vision_experiments.fashion_mnist,
    "flowers5": vision_experiments.flowers5,
    "flowers5-from-scratch": vision_experiments.flowers5_from_scratch,
    "preset-reference": vision_experiments.preset_reference,
    "image-input": vision_experiments.image_input,
    "image-classification": vision_experiments.image_classification,
    "kill-and-resume": frame_experiments.kill_and_resume,
    "gradient-checkpointing": frame_experiments.gradient_checkpointing,
    "gpu": frame_experiments.gpu,
    "ray-answers": ray_experiments.ray_answers,
    "two-workers": worker_experiments.two_workers,
    "trec": nlp_experiments.trec,
    "sst2": nlp_experiments.sst2,
    "ag-news-10k": nlp_experiments.ag_news,
    "clinc150": nlp_experiments.clinc150,
    "wnut17": nlp_experiments.wnut17,
    "wikiann-de": nlp_experiments.wikiann_de,
    "text-inference": nlp_experiments.text_inference,
    "text-inference-bfloat16": nlp_experiments.text_inference_bfloat16,
    "text-finetune": nlp_experiments.text_finetune,
    "text-single": nlp_experiments.text_single,
    "ner-inference": nlp_experiments.ner_inference,
    "multi30k-german": translation_experiments.multi30k_german,
    "multi30k-french": translation_experiments.multi30k_french,
    "translation-decode": translation_experiments.translation_decode,
    "translation-decode-bfloat16": translation_experiments.translation_decode_bfloat16,
    "translation-train": translation_experiments.translation_train,
    "bccd": dense_experiments.bccd,
    "camvid": dense_experiments.camvid,
    "nuclei-dsb2018": dense_experiments.nuclei,
    "detection-inference": dense_experiments.detection_inference,
    "detection-train": dense_experiments.detection_train,
    "movielens-last": recsys_experiments.movielens_last,
    "movielens-temporal": recsys_experiments.movielens_temporal,
    "movielens-ratings": recsys_experiments.movielens_ratings,
    "movielens-peers": collaborative_experiments.movielens_peers,
    "popularity-published": collaborative_experiments.popularity_published,
    "recsys-scale": collaborative_experiments.recsys_scale,
    "beauty-sequences": recsys_experiments.beauty_sequences,
    "lastfm-sequences": recsys_experiments.lastfm_sequences,
    "adult-ranking": recsys_experiments.adult_ranking,
    "ials": recsys_experiments.ials,
    "ranking": recsys_experiments.ranking,
    "sasrec": recsys_experiments.sasrec,
    "movielens-retrieval": retrieval_experiments.movielens_retrieval,
    "two-tower": retrieval_experiments.two_tower,
    "top-k": recsys_experiments.top_k,
}

# Each target as a machine reads it; what only its words say (flat memory, a stated difference) is left to the reader. A
# metric is the mean over runs, "minutes" the longest run; a bound that is a text names another figure.
BOUNDS: dict[str, list[dict[str, Any]]] = {
    "gpu": [{"figure": "tasks that train", "at_least": "tasks tried"}],
    "gradient-checkpointing": [
        {"figure": "memory in training, with / without", "at_most": 0.7},
        {"ratio": "gradient checkpointing / as usual", "at_least": 0.67},
    ],
    "fashion-mnist": [{"metric": "accuracy", "at_least": 0.94}, {"minutes": "of a run", "at_most": 15}],
    "flowers5": [{"metric": "accuracy", "at_least": 0.90}, {"minutes": "of a run", "at_most": 15}],
    "preset-reference": [{"figure": "same top-1", "at_least": "images"}],
    "image-input": [
        {"ratio": "triptych, augmented / bare OpenCV decode and resize", "at_least": 0.9},
        {"ratio": "triptych, augmented / keras.utils.image_dataset_from_directory", "at_least": 1.0},
    ],
    "image-classification": [{"ratio": "triptych fit / keras.Model.fit", "at_least": 0.97}],
    "kill-and-resume": [{"figure": "bit-equal after resuming", "at_least": "trials"}],
    "ray-answers": [
        {"figure": "texts: different inputs answered", "at_least": "texts: inputs"},
        {"figure": "texts: answers", "at_most": "texts: inputs"},
        {"figure": "images: different inputs answered", "at_least": "images: inputs"},
        {"figure": "images: answers", "at_most": "images: inputs"},
    ],
    "two-workers": [
        {"figure": f"{task}: two workers / one process", "at_least": 0.9}
        for task in ("image classification", "text classification", "sequential recommendation")
    ],
    "trec": [{"metric": "accuracy", "at_least": 0.962}],
    "sst2": [{"metric": "accuracy", "at_least": 0.905}],
    "ag-news-10k": [{"metric": "accuracy", "at_least": 0.90}],
    "clinc150": [{"metric": "accuracy", "at_least": 0.955}],
    "wnut17": [{"figure": "F1 less that with PyTorch, in points", "at_least": -0.5}],
    "wikiann-de": [{"figure": "F1 less that with PyTorch, in points", "at_least": -0.5}],
    "text-inference": [
        {"ratio": "triptych predict / transformers.pipeline(batch_size=32)", "at_least": 2.5},
        {"ratio": "triptych predict / PyTorch, sorted batches", "at_least": 1.2},
    ],
    "text-inference-bfloat16": [
        {"ratio": "triptych predict / transformers.pipeline(batch_size=32)", "at_least": 2.5},
        {"ratio": "triptych predict / PyTorch, sorted batches", "at_least": 1.2},
    ],
    "text-finetune": [{"ratio": "triptych step / PyTorch step", "at_least": 1.2}],
    "text-single": [{"ratio": "triptych predict / PyTorch, tokenizer and model", "at_least": 1.0}],
    "multi30k-german": [{"metric": "bleu", "at_least": 36}],
    "multi30k-french": [{"metric": "bleu", "at_least": 55}],
    "translation-decode": [
        {"ratio": "triptych with XLA, greedy / transformers generate, greedy", "at_least": 2.0},
        {"ratio": "triptych with XLA, beam 4 / transformers generate, beam 4", "at_least": 2.0},
        {"figure": "peak memory of triptych with XLA, MiB", "at_most": "peak memory of transformers generate, MiB"},
    ],
    "translation-decode-bfloat16": [
        {"ratio": "triptych with XLA, greedy / transformers generate in float32, greedy", "at_least": 2.0},
        {"ratio": "triptych with XLA, beam 4 / transformers generate in float32, beam 4", "at_least": 2.0},
        {
            "figure": "peak memory of triptych with XLA, MiB",
            "at_most": "peak memory of transformers generate in float32, MiB",
        },
    ],
    "translation-train": [{"ratio": "triptych step / PyTorch step", "at_least": 1.2}],
    "bccd": [
        {"metric": "map_50", "at_least": 0.88},
        {"metric": "map", "at_least": 0.58},
        {"minutes": "of a run", "at_most": 45},
    ],
    "camvid": [{"metric": "mean_iou", "at_least": 0.62}, {"minutes": "of a run", "at_most": 75}],
    "nuclei-dsb2018": [{"figure": "IoU of nucleus", "at_least": 0.85}],
    "detection-inference": [
        {"figure": "images/s from JPEG", "at_least": 15},
        {"ratio": "triptych predict / OpenCV and model.predict", "at_least": 1.2},
    ],
    "detection-train": [{"ratio": "triptych step / keras-hub RetinaNet step", "at_least": 3.0}],
    "movielens-ratings": [{"metric": "rmse", "at_most": 0.857}],
    "movielens-peers": [{"figure": "lowest ratio to a model's nearest peer", "at_least": 0.99}],
    "popularity-published": [{"figure": "largest difference to published figures", "at_most": 0.01}],
    "recsys-scale": [
        {"figure": f"highest peak memory of {model}, GiB", "at_most": 12} for model in ("iALS", "two-tower")
    ],
    "beauty-sequences": [{"metric": "recall@10", "at_least": 0.080}, {"metric": "ndcg@10", "at_least": 0.044}],
    "adult-ranking": [
        {"metric": f"auc, {model}", "at_least": 0.915} for model in ("dlrm", "dcn_v2", "deepfm", "wide_deep")
    ],
    "ranking": [
        {"ratio": "triptych epoch / keras.Model.fit, same network", "at_least": 1.0},
        {"ratio": "triptych epoch / keras-rs layers, fit", "at_least": 1.0},
    ],
    "ials": [
        {
            "ratio": f"triptych, {factors} factors, {size} users / implicit, {factors} factors, {size} users",
            "at_least": 1.0,
        }
        for size in ("6k", "60k")
        for factors in (64, 256)
    ]
    + [
        {"figure": f"ndcg@10, triptych / implicit, {factors} factors, {size} users", "at_least": 0.99}
        for size in ("6k", "60k")
        for factors in (64, 256)
    ],
    "top-k": [{"ratio": "triptych top_k_products / faiss IndexFlatIP", "at_least": 0.9}],
    "movielens-retrieval": [{"metric": "ndcg@10", "at_least": "ndcg@10, popularity"}],
    "two-tower": [
        {"ratio": "triptych row-wise Adam, batches of 4096 / TFRS adagrad, batches of 4096", "at_least": 1.5}
    ],
    "sasrec": [{"ratio": "triptych epoch / RecTools epoch", "at_least": 1.5}],
    "lastfm-sequences": [{"metric": "recall@10", "at_least": 0.0688}, {"metric": "ndcg@10", "at_least": 0.0390}],
    "ner-inference": [{"ratio": "triptych predict / transformers.pipeline(batch_size=32)", "at_least": 2.5}],
}


# The page.


def render(records: dict[str, Any]) -> str:
    """docs/results.md from the kept figures."""
    parts = [
        "# Results\n",
        "Generated by `python scripts/results.py` from docs/results.json; do not edit. Each section's command runs the "
        "experiment again and updates both.\n",
    ]
    for name in EXPERIMENTS:
        if name in records:
            parts.append(_section(name, records[name]))
    return "\n".join(parts)


def _section(name: str, record: dict[str, Any]) -> str:
    machine = record["hardware"]
    precision = f" --precision {record['trained_in']}" if "trained_in" in record else ""
    lines = [f"## {record['title']}\n", f"- command: `python scripts/results.py {name}{precision}`"]
    if "benchmark" in record:
        lines.append(f"- measured by: `python scripts/benchmark.py {record['benchmark']}`")
    lines += [
        f"- {key}: {record[key]}" for key in ("data", "overlap", "files", "settings", "metric", "note") if key in record
    ]
    if "target" in record:
        lines.append(f"- target: {record['target']}{_verdict(record)}")
    where = f"{machine['cpu']}, {machine['cores']} core{'s' * (machine['cores'] != 1)}, Python {machine['python']}"
    lines.append(f"- measured on {record['date']}: {where}; wall time {record['minutes']:.1f} min\n")
    if "runs" in record:
        lines += _run_table(record)
    if "rates" in record:
        lines += _rate_table(record)
    if "figures" in record:
        lines += ["", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {_shown(value)} |" for key, value in record["figures"].items()]
    if "kills" in record:
        lines += ["", "Killed after: " + "; ".join(record["kills"]) + "."]
    return "\n".join([*lines, ""])


def _verdict(record: dict[str, Any]) -> str:
    """Whether the measured figures keep the record's bounds; nothing where it has none."""
    if not record.get("bound"):
        return ""
    return ": **met**" if all(_is_kept(record, bound) for bound in record["bound"]) else ": **not met**"


def _is_kept(record: dict[str, Any], bound: dict[str, Any]) -> bool:
    if "metric" in bound:
        value = statistics.mean(run["metrics"][bound["metric"]] for run in record["runs"])
    elif "minutes" in bound:
        value = max(run["minutes"] for run in record["runs"])
    else:
        value = record["ratios"][bound["ratio"]] if "ratio" in bound else record["figures"][bound["figure"]]
    limit = bound["at_least"] if "at_least" in bound else bound["at_most"]
    limit = record["figures"][limit] if isinstance(limit, str) else limit
    return bool(value >= limit if "at_least" in bound else value <= limit)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _run_table(record: dict[str, Any]) -> list[str]:
    names = list(record["runs"][0]["metrics"])
    lines = ["| seed | " + " | ".join(names) + " | minutes of training |", "|---" * (len(names) + 2) + "|"]
    for run in record["runs"]:
        values = " | ".join(f"{run['metrics'][name]:.4f}" for name in names)
        lines.append(f"| {run['seed']} | {values} | {run['minutes']:.1f} |")
    if len(record["runs"]) > 1:
        means = " | ".join(f"{statistics.mean(run['metrics'][name] for run in record['runs']):.4f}" for name in names)
        minutes = statistics.mean(run["minutes"] for run in record["runs"])
        lines.append(f"| **mean** | {means} | {minutes:.1f} |")
    if "baseline" in record:
        lines += ["", f"Baseline: {record['baseline']['name']}, accuracy {record['baseline']['accuracy']:.4f}."]
    return lines


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _rate_table(record: dict[str, Any]) -> list[str]:
    lines = [f"| side | {record['unit']}, median | lowest | highest |", "|---|---|---|---|"]
    for side, rate in record["rates"].items():
        values = " | ".join(_rate(value) for value in (rate["median"], min(rate["all"]), max(rate["all"])))
        lines.append(f"| {side} | {values} |")
    lines += ["", *(f"- {key}: **{value:.2f}** (median over turns)" for key, value in record["ratios"].items())]
    memory = record.get("resident_mib_after_each_of_10_passes")
    return (
        [*lines, f"- resident memory after each of 10 passes, MiB: {', '.join(map(str, memory))}"] if memory else lines
    )


def run_experiment(name: str, precision: str = "float32") -> None:
    """Run one experiment and put its record among those that are kept by then."""
    print(f"running {name}", file=sys.stderr)
    start = time.monotonic()
    record = EXPERIMENTS[name]()
    record |= {"minutes": (time.monotonic() - start) / 60, "date": time.strftime("%Y-%m-%d"), "hardware": hardware()}
    if precision != "float32":
        record["trained_in"] = precision
    keep(kept() | {name: record})


def kept() -> dict[str, Any]:
    """The records in docs/results.json."""
    records: dict[str, Any] = json.loads(_RECORD.read_text(encoding="utf-8")) if _RECORD.exists() else {}
    return records


def keep(records: dict[str, Any]) -> None:
    """Write the records, each with the bounds that its target has now."""
    for name, record in records.items():
        if name in BOUNDS:
            record["bound"] = BOUNDS[name]
    _RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named experiments, then render the page."""
    parser = OneLineParser(description="Run experiments and write docs/results.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}; none: only render")
    parser.add_argument("--all", action="store_true", help="run every experiment but gpu, which needs one")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "mixed_bfloat16"),
        help="arithmetic of what is trained; benchmarks choose for themselves",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"There is no experiment {unknown[0]!r}. Experiments: {', '.join(EXPERIMENTS)}.")
    RuntimeConfig(precision=options.precision).apply()
    names = [name for name in EXPERIMENTS if name != "gpu"] if options.all else options.names
    for name in names:
        run_experiment(name, options.precision)
    keep(kept())
    _PAGE.write_text(render(kept()), encoding="utf-8")
    print(f"wrote {_PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(run_script(main))
