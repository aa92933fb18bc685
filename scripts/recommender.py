"""The command line that scripts of recommenders share: train, evaluate, recommend, predict, export, tune."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from shared.artifact import check_target
from shared.cli import imported, run_script, run_verb
from shared.examples import existing_file, text_lines
from shared.flags import OneLineParser, add_flags, config_from_flags
from shared.pipeline import AfterEpoch, ExportFormat
from shared.ray_verbs import add_engine, add_search, answer_on_ray, on_ray, own_runtime, tune_on_ray, with_values
from shared.runtime import RuntimeConfig, current_runtime
from shared.training_config import TrainingConfig
from shared.training_flags import add_profile_flag, apply_for_training, print_profile, profile_directory

_COLUMNS = ("user", "item", "rating", "timestamp")
_SIDES = ("user", "item")
_INTERVAL = 0.95
# Users who are recommended to at a time, so that many need no more memory than a few.
_PORTION = 4096


@dataclass(frozen=True, kw_only=True)
class RecommenderCommand:
    """One recommender's command line: `pipeline` and `config` are "module:name"; `common` are the flags shown.

    With `holds_out_validation`, a run with --holdout and without --validation leaves the last interaction of each
    training user out too: it chooses the best epoch, and is part of the users' histories when the test is scored.
    `features` are flags for tables of users and items, in train, and for newcomers in recommend.
    """

    name: str
    description: str
    pipeline: str
    config: str
    common: tuple[str, ...]
    holds_out_validation: bool = False
    features: bool = False

    # What processes of a cluster run.

    def answering(self, arguments: Sequence[str]) -> Callable[[list[str]], Any]:
        """What recommends to users as the command line of `recommend` says."""
        options = _parser(self, show_all=True).parse_args(list(arguments))
        return _recommending(self, options, own_runtime(options))

    def trained(self, arguments: Sequence[str], values: Mapping[str, str], after_epoch: AfterEpoch) -> Any:
        """A recommender trained as `tune` was asked to, with other values for some flags."""
        asked = _parser(self, show_all=True).parse_args(list(arguments))
        options = with_values(asked, values, imported(self.config))
        runtime = own_runtime(options)
        prepared = _prepared(self, options)
        runtime.apply()
        pipeline = imported(self.pipeline)(prepared.config)
        data = prepared.learned, prepared.validation
        pipeline.fit(*data, training=prepared.training, after_epoch=after_epoch, **prepared.tables)
        return pipeline


def main(command: RecommenderCommand, arguments: Sequence[str] | None = None) -> int:
    """Run one of the verbs; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int | None:
        parser = _parser(command, show_all="--help-all" in given)
        options = parser.parse_args(["--help" if a == "--help-all" else a for a in given])
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger("recsys").setLevel(logging.INFO)
        runtime = config_from_flags(RuntimeConfig, options)
        act = functools.partial(_VERBS[options.verb], command, options)
        return run_verb(options, act, runtime, given)

    return run_script(run, arguments=given)


# The verbs.


@dataclass(frozen=True)
class _Prepared:
    """What a training needs: config, data that it learns from and is chosen by, and what is held out.

    `tables` are keywords of `fit`, `whole` the split before a validation set was left out.
    """

    config: Any
    training: TrainingConfig
    holdout: Any
    whole: Any
    split: Any
    learned: Any
    validation: Any
    tables: dict[str, Any]


def _prepared(command: RecommenderCommand, options: argparse.Namespace) -> _Prepared:
    from recsys import Holdout, Split
    from recsys.splitting import leave_one_out

    training = config_from_flags(TrainingConfig, options)
    config = config_from_flags(imported(command.config), options)
    holdout = None if options.holdout is None else Holdout.parse(options.holdout, seed=training.seed)
    data = _read(options.train, options, training.max_bad_share)
    validation = None if options.validation is None else _read(options.validation, options, training.max_bad_share)
    split = Split(data, data) if holdout is None else holdout(data)
    whole, learned = split, split.train
    chosen_by_validation = command.holds_out_validation or options.verb == "tune"
    if chosen_by_validation and holdout is not None and validation is None:
        inner = leave_one_out(split.train)
        learned, validation = inner.train, inner.test
        split = replace(split, seen=validation if split.seen is None else validation.joined(split.seen))
    known = {"user": learned.users, "item": learned.items}
    features = _features(command, options, training.max_bad_share, known)
    tables = {f"{side}_features": table for side, table in features.items()}
    return _Prepared(config, training, holdout, whole, split, learned, validation, tables)


def _train(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    output = Path(options.output)
    check_target(output)
    prepared = _prepared(command, options)
    config, training, learned = prepared.config, prepared.training, prepared.learned
    checkpoint = output.with_name(output.name + ".checkpoint")
    pipeline = apply_for_training(
        runtime, lambda: imported(command.pipeline)(config), learned, training, checkpoint, prepared.tables
    )
    history = pipeline.fit(
        learned,
        prepared.validation,
        training=training,
        checkpoint=checkpoint,
        resume=options.resume,
        log=output.with_name(output.name + ".log.jsonl"),
        profile=profile_directory(options.profile, output),
        **prepared.tables,
    )
    workers = current_runtime().workers
    if not workers.is_first:
        return  # the first of several workers scores, saves and tells
    with workers.acting_alone():
        if prepared.holdout is not None:
            metrics = pipeline.evaluate(prepared.split.test, seen=prepared.split.seen)
            print(f"held out: {prepared.holdout}, {metrics.details['users']} users, {metrics.details['protocol']}")
            print(f"{getattr(config, 'model', command.name):40s} {metrics}")
        pipeline.save(output)
        shutil.rmtree(checkpoint, ignore_errors=True)
        print(f"saved {output} after {history.wall_seconds:.1f} s of training, {len(history.bad_records)} bad records")
        print_profile(options.profile, output)
        if prepared.holdout is not None and options.baselines:
            learn_more = learned is not prepared.whole.train
            _print_baselines(prepared.whole, prepared.holdout, config.min_rating, learn_more=learn_more)


def _print_baselines(split: Any, holdout: Any, min_rating: float, *, learn_more: bool) -> None:
    """The scores of simple models; `learn_more`: from what chose the model's epoch, too, and they are shown as such."""
    from recsys.baselines import simple_baselines

    try:
        baselines = simple_baselines(split, holdout, min_rating=min_rating)
    except ValueError as error:  # the model is trained and saved: what fails beside it is no failure
        print(f"baselines   not measured: {error}")
        return
    if learn_more:
        print("baselines (they learn the validation items, too):")
    for name, metrics in baselines.items():
        print(f"{name:40s} {metrics}")


def _evaluate(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    data = _read(options.data, options, options.max_bad_share)
    seen = None if options.seen is None else _read(options.seen, options, options.max_bad_share)
    runtime.apply()
    pipeline = imported(command.pipeline).load(options.model)
    cutoffs = tuple(int(part) for part in options.cutoffs.split(","))
    metrics = pipeline.evaluate(data, seen=seen, cutoffs=cutoffs, negatives=options.negatives)
    counts = {name: value for name, value in metrics.details.items() if isinstance(value, int)}
    print(f"{metrics.details['protocol']}; " + ", ".join(f"{name} {value}" for name, value in counts.items()))
    for name, value in metrics.items():
        low, high = metrics.details["intervals"].get(name, (None, None))
        interval = "" if low is None else f"   {100 * _INTERVAL:.0f} % interval {low:.4f} to {high:.4f}"
        print(f"{name:24s} {value:.4f}{interval}")
    if options.json is not None:
        Path(options.json).write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")


def _tune(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    if options.holdout is None and options.validation is None:
        raise ValueError("`tune` needs --validation PATH, or --holdout HOW, to choose by.")
    config_class = imported(command.config)
    tune_on_ray(options, runtime, config_class, lambda changed: config_from_flags(config_class, changed))


def _recommend(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    typed = [options.users] if options.users.startswith("@") else options.users.split(",")
    users = filter(None, text_lines(typed))
    if on_ray(options):
        answer_on_ray(options, runtime, users)
        return
    recommend = _recommending(command, options, runtime)
    portions = iter(lambda: list(itertools.islice(users, _PORTION)), [])
    _write(itertools.chain.from_iterable(map(recommend, portions)), options.output)


def _recommending(
    command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig
) -> Callable[[list[str]], Any]:
    """What recommends to users, by their ids as they were typed."""
    runtime.apply()
    pipeline = imported(command.pipeline).load(options.model)
    known = {"user": pipeline.users, "item": pipeline.items}
    features = _features(command, options, 0.01, known)
    for side, table in features.items():
        added = pipeline.add_items(table) if side == "item" else pipeline.add_users(table)
        print(f"{len(added)} {side}s added by their features", file=sys.stderr)
    exclude = _ids(filter(None, options.exclude.split(",")), pipeline.items) if options.exclude else ()

    def recommend(users: list[str]) -> Any:
        numbers = _ids(users, pipeline.users)
        return pipeline.recommend(numbers, options.k, seen=not options.keep_seen, exclude=exclude)

    return recommend


def _predict(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    runtime.apply()
    pipeline = imported(command.pipeline).load(options.model)
    pairs = []
    for text in options.inputs:
        user, comma, item = text.rpartition(",")
        if not comma:
            raise ValueError(f"An input is USER,ITEM; received {text!r}.")
        pairs.append((*_ids([user], pipeline.users), *_ids([item], pipeline.items)))
    _write(pipeline.predict(pairs), options.output)


def _export(command: RecommenderCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    runtime.apply()
    print(imported(command.pipeline).load(options.model).export(options.output, format=options.format))


_VERBS: dict[str, Callable[[RecommenderCommand, argparse.Namespace, RuntimeConfig], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "recommend": _recommend,
    "predict": _predict,
    "export": _export,
    "tune": _tune,
}


def _read(path: str, options: argparse.Namespace, max_bad_share: float) -> Any:
    from recsys import read_interactions

    places: dict[str, Any] = {name: getattr(options, f"column.{name}") for name in _COLUMNS}
    places = {name: int(place) if place is not None and place.isdecimal() else place for name, place in places.items()}
    return read_interactions(path, **places, ids=options.ids, max_bad_share=max_bad_share)


def _features(
    command: RecommenderCommand, options: argparse.Namespace, max_bad_share: float, known: Mapping[str, Any]
) -> dict[str, Any]:
    """The tables in the flags, by side, with ids of the kind that is `known`."""
    from recsys.feature_tables import read_features

    tables = {}
    for side in _SIDES if command.features else ():
        path = getattr(options, f"{side}_features")
        if path is not None:
            id_column = getattr(options, f"{side}_features_id") or _id_column(Path(path), side)
            drop = [name for name in (getattr(options, f"{side}_features_drop") or "").split(",") if name]
            tables[side] = read_features(
                path,
                id=id_column,
                drop=drop,
                max_bad_share=max_bad_share,
                ids="str" if len(known[side]) and isinstance(known[side][0], str) else "int",
            )
    return tables


def _id_column(path: Path, side: str) -> str:
    """The column of a text file's header that by its name has the ids of users or items."""
    from recsys.columns import role_of

    with existing_file(path).open("rb") as stream:
        first = stream.readline(1 << 16)
    try:
        names = re.split(r"[,;\t|]", first.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        names = []  # Parquet, or packed
    found = [name for name in (part.strip().strip('"') for part in names) if role_of(name) == side or name == "id"]
    if not found:
        raise ValueError(f"{path}: no column is known to hold ids of {side}s. Name it with --{side}-features-id.")
    return found[0]


def _ids(texts: Iterable[str], known: Sequence[Any]) -> list[Any]:
    """Ids as they were typed, as the kind that the recommender knows."""
    is_whole = bool(known) and isinstance(known[0], int)
    return [_whole(text) if is_whole else text for text in texts]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"The ids of this recommender are whole numbers; received {text!r}.") from error


def _write(answers: Iterable[Any], output: str | None) -> None:
    with contextlib.ExitStack() as stack:
        stream = sys.stdout if output is None else stack.enter_context(Path(output).open("w", encoding="utf-8"))
        for answer in answers:
            stream.write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")


# The parser.


def _parser(command: RecommenderCommand, *, show_all: bool) -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"{command.name}.py", description=command.description, allow_abbrev=False)
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="{" + ",".join(_VERBS) + "}", parser_class=OneLineParser
    )

    def verb(name: str, words: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        added.usage = f"{command.name}.py {name} [flags]"
        return added

    train = verb("train", "train on interactions and save the recommender; --help-all shows every flag")
    train.add_argument("--holdout", metavar="HOW", help="leave_one_out, temporal:0.1 or users:0.1: held out and scored")
    train.add_argument("--output", required=True, metavar="DIR", help="where the recommender is saved")
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    add_profile_flag(train)
    add_engine(train)
    tune = verb("tune", "search over flags of train: trials on a Ray cluster, the bad ones ended early")
    for training in (train, tune):
        training.add_argument("--train", required=True, metavar="PATH", help="interactions")
        training.add_argument("--validation", metavar="PATH", help="interactions that choose the best epoch")
    tune.add_argument("--holdout", metavar="HOW", help="left out, with the last interaction before, which then chooses")
    tune.add_argument("--output", required=True, metavar="DIR", help="where the best trial's recommender is saved")
    add_search(tune)
    train.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction, default=True, help="score simple models, too (--holdout)"
    )
    evaluate = verb("evaluate", "score a saved recommender on held-out interactions")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="held-out interactions")
    evaluate.add_argument("--seen", metavar="PATH", help="what is known of users beside the training set")
    evaluate.add_argument("--cutoffs", default="10", metavar="K,...", help="the k of recall@k and so on (default: 10)")
    evaluate.add_argument("--negatives", type=int, default=0, metavar="N", help="rank among N sampled items instead")
    evaluate.add_argument("--json", metavar="FILE", help="write the metrics there too")
    evaluate.add_argument("--max-bad-share", type=float, default=0.01, metavar="X", help="of lines (default: 0.01)")
    for reading in (train, tune, evaluate):
        for name in _COLUMNS:
            reading.add_argument(f"--{name}-column", dest=f"column.{name}", metavar="NAME", help=f"of the {name}s")
        reading.add_argument("--ids", choices=("auto", "str", "int"), default="auto", help="kind (default: auto)")
    recommend = verb("recommend", "the best items for users, as JSON lines")
    recommend.add_argument(
        "--users",
        required=True,
        metavar="U1,U2,...",
        help="users, or @FILE with one a line; unknown ones get popular items",
    )
    recommend.add_argument("--k", type=int, default=10, metavar="N", help="items for each (default: 10)")
    recommend.add_argument("--keep-seen", action="store_true", help="recommend what users have had, too")
    recommend.add_argument("--exclude", metavar="I1,I2,...", help="items to leave out")
    predict = verb("predict", "scores of pairs, as JSON lines")
    predict.add_argument("inputs", nargs="+", metavar="USER,ITEM", help="pairs")
    export = verb("export", "write a form that runs without Triptych")
    export.add_argument("--format", choices=get_args(ExportFormat), default="saved_model", help="default: saved_model")
    export.add_argument("--output", required=True, metavar="PATH", help="where to write")
    add_engine(recommend)
    for featured in (train, tune, recommend) if command.features else ():
        whose = "of newcomers among the" if featured is recommend else "of all"
        for side in _SIDES:
            name = f"--{side}-features"
            featured.add_argument(name, metavar="PATH", help=f"table of features {whose} {side}s")
            featured.add_argument(f"{name}-id", metavar="NAME", help=f"its column of {side} ids")
            featured.add_argument(f"{name}-drop", metavar="A,B", help="its columns that are left out")
    for answering in (recommend, predict):
        answering.add_argument("--output", metavar="FILE", help="write there instead of to stdout")
    for loading in (evaluate, recommend, predict, export):
        loading.add_argument("--model", required=True, metavar="DIR", help="a saved recommender")
    shown = None if show_all else command.common
    for config_class in (imported(command.config), TrainingConfig):
        add_flags(train, config_class, shown=shown)
        add_flags(tune, config_class, shown=None if show_all else ("epochs", "batch_size"))
    for each in (train, tune, evaluate, recommend, predict, export):
        add_flags(each, RuntimeConfig, shown=shown if each is train else ("workers",) if each is tune else ())
    return parser
