"""Command lines made from configs: a script names its pipeline and its reader, the rest is the same for all tasks.

Nothing here imports TensorFlow: `--help` answers at once, and `RuntimeConfig` takes effect before the first import.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from shared.artifact import check_target
from shared.config import Config
from shared.exit_codes import DOMAINS, mapped_errors, resume_command
from shared.flags import OneLineParser as OneLineParser
from shared.flags import add_flags, config_from_flags, given_flags
from shared.launcher import LAUNCHED, local_workers, run_local_workers
from shared.pipeline import AfterEpoch, ExportFormat, Pipeline
from shared.ray_verbs import (
    add_engine,
    add_search,
    answer_on_ray,
    on_ray,
    own_runtime,
    train_on_ray,
    tune_on_ray,
    with_values,
)
from shared.runtime import RuntimeConfig, current_runtime
from shared.training_config import TrainingConfig
from shared.training_flags import add_profile_flag, apply_for_training, print_profile, profile_directory


@dataclass(frozen=True)
class ReaderOption:
    """A keyword of a script's `read`, which becomes a flag of train and evaluate; handed on where it is given."""

    name: str
    help: str


@dataclass(frozen=True)
class AnswerOption:
    """A keyword of a pipeline's `predict`, a number or a text, which becomes a flag; handed on where it is given."""

    name: str
    help: str
    type: type[int] | type[float] | type[str] = int


@dataclass(frozen=True)
class NamedInput:
    """An input of `predict` that cannot stand in its own answer, such as a frame of a video, and what stands there."""

    name: Any
    value: Any


@dataclass(frozen=True, kw_only=True)
class TaskCommand:
    """One task's command line.

    `pipeline` and `config` are "module:name" and imported when they are needed. `read(path, split, max_bad_share=...)`
    gives the examples at `path`; `split` is "train" or "test", and `reader_options` name its other keywords. `common`
    names the config fields that `train --help` shows; `--help-all` shows every one. `details` turns an evaluation's
    details into lines to print, and may write pictures into the directory that it is given. `inputs` turns the inputs
    of `predict` as they were typed into what the pipeline takes (or `NamedInput`s), and `answer_options` name keywords
    of it, `input_options` those of `inputs`; `portion` inputs are held at a time. `presets` says whether there are any.
    `draw(input, answer, file)` writes a picture of an answer to `file`, for `predict --pictures`.
    `baseline(train, validation, config)` is a line about a simple model, printed beside the result.
    `check(examples, path, pictures)` describes data in lines and may write pictures: with it there is the verb
    `check`. With `reads_for_model`, `read` in evaluate and `inputs` have the saved model's directory as `model`.
    """

    name: str
    description: str
    pipeline: str
    config: str
    read: Callable[..., Any]
    common: tuple[str, ...]
    details: Callable[[Any, Path | None], Sequence[str]] | None = None
    inputs: Callable[..., Iterable[Any]] = iter
    inputs_help: str = "an input, such as a file"
    baseline: Callable[[Any, Any, Any], str] | None = None
    reader_options: tuple[ReaderOption, ...] = ()
    answer_options: tuple[AnswerOption, ...] = ()
    input_options: tuple[ReaderOption, ...] = ()
    presets: bool = True
    portion: int = 1024
    draw: Callable[[Any, Any, Path], None] | None = None
    check: Callable[[Any, Path, Path | None], Sequence[str]] | None = None
    reads_for_model: bool = False

    def pipeline_class(self) -> Any:
        """The pipeline's class."""
        return imported(self.pipeline)

    def config_class(self) -> type[Config]:
        """The class of the pipeline's config."""
        config_class: type[Config] = imported(self.config)
        return config_class

    # What processes of a cluster run.

    def answering(self, arguments: Sequence[str]) -> Callable[[list[Any]], Any]:
        """What answers inputs as the command line of `predict` says."""
        options = _task_parser(self, show_all=True).parse_args(list(arguments))
        return _answers(self, options, own_runtime(options))

    def trained(self, arguments: Sequence[str], values: Mapping[str, str], after_epoch: AfterEpoch) -> Pipeline:
        """A pipeline trained as `tune` was asked to, with other values for some flags."""
        asked = _task_parser(self, show_all=True).parse_args(list(arguments))
        options = with_values(asked, values, self.config_class())
        runtime = own_runtime(options)
        training = config_from_flags(TrainingConfig, options)
        paths = (options.train, "train"), (options.validation, "test")
        train, validation = (_read(self, options, *path, training.max_bad_share) for path in paths)
        runtime.apply()
        pipeline = _new_pipeline(self, options)
        pipeline.fit(train, validation, training=training, after_epoch=after_epoch)
        return pipeline


def imported(reference: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def main(command: TaskCommand, arguments: Sequence[str] | None = None) -> int:
    """Run one of the verbs (train, evaluate, predict, export, maybe check); returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mapped_errors() as outcome:
        parser = _task_parser(command, show_all="--help-all" in given)
        options = parser.parse_args(["--help" if a == "--help-all" else a for a in given])
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        for name in ("shared.runtime", *DOMAINS):
            logging.getLogger(name).setLevel(logging.INFO)
        runtime = config_from_flags(RuntimeConfig, options)
        act = functools.partial(_VERBS[options.verb], command, options)
        outcome.take(run_verb(options, act, runtime, given))
    if outcome.resumable and LAUNCHED not in os.environ:
        print(f"resume: python {shlex.join(resume_command(sys.argv[:1] + given))}", file=sys.stderr)
    return outcome.code


def run_verb(
    options: argparse.Namespace, act: Callable[[RuntimeConfig], None], runtime: RuntimeConfig, arguments: Sequence[str]
) -> int | None:
    """Run `options.verb`: `train` in several processes where these are asked for, all others by this process alone.

    Returns:
        The exit code of the processes; None where the verb was run here.
    """
    if on_ray(options):
        options.arguments = list(arguments)
        if options.verb == "train":
            train_on_ray(options, runtime)
        else:
            act(runtime)
        return None
    if options.verb != "train":
        runtime = runtime.replace(workers="off")
    count = local_workers(runtime.workers)
    if count is not None:
        return run_local_workers(count, [*sys.argv[:1], *arguments])
    runtime.prepare_environment()
    act(runtime)
    return None


def run_script(function: Callable[[], int | None], *, arguments: Sequence[str] | None = None) -> int:
    """Run a script's main function with the exit codes and one-line errors of the task scripts; returns the code.

    The function may return an exit code. With `arguments`, those of the script, a training that was interrupted prints
    the command that resumes it.
    """
    with mapped_errors() as outcome:
        outcome.take(function())
    if outcome.resumable and arguments is not None and LAUNCHED not in os.environ:
        print(f"resume: python {shlex.join(resume_command([*sys.argv[:1], *arguments]))}", file=sys.stderr)
    return outcome.code


# The verbs.


def _train(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    output = Path(options.output)
    check_target(output)
    training = config_from_flags(TrainingConfig, options)
    share = training.max_bad_share
    train = _read(command, options, options.train, "train", share)
    validation = None if options.validation is None else _read(command, options, options.validation, "test", share)
    checkpoint = output.with_name(output.name + ".checkpoint")
    pipeline = apply_for_training(runtime, lambda: _new_pipeline(command, options), train, training, checkpoint)
    history = pipeline.fit(
        train,
        validation,
        training=training,
        checkpoint=checkpoint,
        resume=options.resume,
        log=output.with_name(output.name + ".log.jsonl"),
        profile=profile_directory(options.profile, output),
    )
    workers = current_runtime().workers
    if not workers.is_first:
        return  # the first of several workers scores, saves and tells
    with workers.acting_alone():
        if validation is not None:
            print(f"validation  {pipeline.evaluate(validation, max_bad_share=share)}")
        pipeline.save(output)
        shutil.rmtree(checkpoint, ignore_errors=True)
        print(f"saved {output} after {history.wall_seconds:.1f} s of training, {len(history.bad_records)} bad records")
        print_profile(options.profile, output)
        if validation is not None and command.baseline is not None:
            print(f"baseline    {_baseline(command, train, validation, pipeline.config)}")


def _baseline(command: TaskCommand, train: Any, validation: Any, config: Config) -> str:
    assert command.baseline is not None
    try:
        return command.baseline(train, validation, config)
    except ValueError as error:  # the model is trained and saved: what fails beside it is no failure
        return f"not measured: {error}"


def _read(command: TaskCommand, options: argparse.Namespace, path: str, split: str, max_bad_share: float) -> Any:
    given = _given(options, "reader", command.reader_options) | _model_of(command, options)
    return command.read(Path(path), split, max_bad_share=max_bad_share, **given)


def _inputs(command: TaskCommand, options: argparse.Namespace) -> Iterable[Any]:
    given = _given(options, "input", command.input_options) | _model_of(command, options)
    return command.inputs(options.inputs, **given)


def _model_of(command: TaskCommand, options: argparse.Namespace) -> dict[str, Any]:
    model = getattr(options, "model", None) if options.verb in ("evaluate", "predict") else None
    return {"model": Path(model)} if command.reads_for_model and model is not None else {}


def _given(options: argparse.Namespace, kind: str, names: Sequence[ReaderOption | AnswerOption]) -> dict[str, Any]:
    values = {option.name: getattr(options, f"{kind}.{option.name}") for option in names}
    return {name: value for name, value in values.items() if value is not None}


def _new_pipeline(command: TaskCommand, options: argparse.Namespace) -> Pipeline:
    pipeline_class, config_class = command.pipeline_class(), command.config_class()
    chosen = given_flags(config_class, options)
    if options.preset is None:
        if chosen.get("labels") == ("from_data",):
            del chosen["labels"]
        pipeline: Pipeline = pipeline_class(config_class.from_dict(chosen))
        return pipeline
    if chosen.get("labels") == ("from_data",):
        chosen["labels"] = "from_data"
    pipeline = pipeline_class.from_preset(options.preset, **chosen)
    return pipeline


def _tune(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    tune_on_ray(options, runtime, command.config_class())


def _evaluate(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    share = options.max_bad_share
    data = _read(command, options, options.data, "test", share)
    runtime.apply()
    metrics = command.pipeline_class().load(options.model).evaluate(data, max_bad_share=share)
    pictures = None if options.pictures is None else Path(options.pictures)
    for line in command.details(metrics, pictures) if command.details else ():
        print(line)
    for name, value in metrics.items():
        print(f"{name:24s} {value:.4f}")
    if options.json is not None:
        Path(options.json).write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")


def _predict(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    if (options.model is None) == (options.preset is None):
        if not command.presets:
            raise ValueError("`predict` needs --model DIR.")
        raise ValueError("`predict` needs either --model DIR or --preset REF.")
    if on_ray(options):
        if getattr(options, "pictures", None) is not None:
            raise ValueError("--pictures are drawn by the engine local only.")
        answer_on_ray(options, runtime, _inputs(command, options), portion=command.portion)
        return
    answers = _answers(command, options, runtime)
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if options.output is not None:
            stream = stack.enter_context(Path(options.output).open("w", encoding="utf-8"))
        # In portions, so that many inputs need no more memory than a few.
        inputs = map(_named, _inputs(command, options))
        pictures = _Pictures(command, options)
        while portion := list(itertools.islice(inputs, command.portion)):
            values = [source.value for source in portion]
            for source, answer in zip(portion, answers(values), strict=True):
                stream.write(json.dumps({"input": source.name, **answer.to_dict()}, ensure_ascii=False) + "\n")
                pictures.add(source, answer)


def _answers(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> Callable[[list[Any]], Any]:
    """`predict` of the pipeline that was asked for, with the keywords that were given."""
    runtime.apply()
    pipeline_class = command.pipeline_class()
    load = pipeline_class.load if options.preset is None else pipeline_class.from_preset
    pipeline = load(options.model or options.preset)
    return functools.partial(pipeline.predict, **_given(options, "answer", command.answer_options))


def _named(source: Any) -> NamedInput:
    return source if isinstance(source, NamedInput) else NamedInput(source, source)


class _Pictures:
    """Pictures of answers in the directory that was asked for, numbered in the order of the inputs."""

    def __init__(self, command: TaskCommand, options: argparse.Namespace) -> None:
        self._draw = command.draw
        self._directory = Path(options.pictures) if command.draw and options.pictures is not None else None
        self._count = 0
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)

    def add(self, source: NamedInput, answer: Any) -> None:
        if self._directory is None or self._draw is None:
            return
        stem = Path(source.name).stem if isinstance(source.name, str) else "frame"
        self._draw(source.value, answer, self._directory / f"{self._count:06d}-{stem}.png")
        self._count += 1


def _check(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    assert command.check is not None
    # All of it is read, however much is bad: that is what is to be reported.
    examples = _read(command, options, options.data, "train", 1.0)
    pictures = None if options.pictures is None else Path(options.pictures)
    for line in command.check(examples, Path(options.data), pictures):
        print(line)


def _export(command: TaskCommand, options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    runtime.apply()
    print(command.pipeline_class().load(options.model).export(options.output, format=options.format))


_VERBS: dict[str, Callable[[TaskCommand, argparse.Namespace, RuntimeConfig], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "tune": _tune,
    "check": _check,
}


# Parsers.


def _task_parser(command: TaskCommand, *, show_all: bool) -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"{command.name}.py", description=command.description, allow_abbrev=False)
    names = [name for name in _VERBS if name != "check" or command.check is not None]
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="{" + ",".join(names) + "}", parser_class=OneLineParser
    )
    add_verb = _verb_adder(verbs)
    train = add_verb("train", "train on examples and save the pipeline; --help-all shows every flag")
    train.add_argument("--train", required=True, metavar="PATH", help="training examples")
    train.add_argument("--validation", metavar="PATH", help="examples that choose the best weights")
    if command.presets:
        train.add_argument(
            "--preset", metavar="REF", help="pretrained start: a name, a directory, hf://... or kaggle://..."
        )
    train.add_argument("--output", required=True, metavar="DIR", help="where the pipeline is saved")
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    add_profile_flag(train)
    tune = add_verb("tune", "search over flags of train: trials on a Ray cluster, the bad ones ended early")
    tune.add_argument("--train", required=True, metavar="PATH", help="training examples")
    tune.add_argument("--validation", required=True, metavar="PATH", help="examples whose first metric is to be best")
    if command.presets:
        tune.add_argument("--preset", metavar="REF", help="pretrained start, as for train")
    tune.add_argument("--output", required=True, metavar="DIR", help="where the best trial's pipeline is saved")
    add_search(tune)
    shown = None if show_all else (*command.common, "workers")
    for verb in (train, tune):
        for config_class in (command.config_class(), TrainingConfig):
            add_flags(verb, config_class, shown=shown if verb is train or show_all else ("epochs", "batch_size"))
    add_engine(train)
    evaluate = add_verb("evaluate", "score a saved pipeline on examples")
    evaluate.add_argument("--model", required=True, metavar="DIR", help="a saved pipeline")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="examples")
    evaluate.add_argument("--json", metavar="FILE", help="write the metrics there too")
    reading = [train, tune, evaluate]
    if command.check is not None:
        check = add_verb("check", "say what is in a data set and what is wrong with it")
        check.add_argument("--data", required=True, metavar="PATH", help="examples")
        check.add_argument("--pictures", metavar="DIR", help="write a sheet of examples there")
        reading.append(check)
    for verb in reading:
        _add_options(verb, "reader", command.reader_options)
    evaluate.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        metavar="X",
        help="share of unreadable examples that is tolerated (default: 0.01)",
    )
    evaluate.add_argument("--pictures", metavar="DIR", help="write pictures (confusion matrix) there")
    predict = add_verb("predict", "answers for inputs, as JSON lines")
    predict.add_argument("--model", metavar="DIR", help="a saved pipeline")
    if command.presets:
        predict.add_argument("--preset", metavar="REF", help="a preset with a head, instead of a saved pipeline")
    else:
        parser.set_defaults(preset=None)
    predict.add_argument("--output", metavar="FILE", help="write there instead of to stdout")
    add_engine(predict)
    if command.draw is not None:
        predict.add_argument("--pictures", metavar="DIR", help="write a picture of each answer there")
    _add_options(predict, "answer", command.answer_options)
    _add_options(predict, "input", command.input_options)
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help=command.inputs_help)
    export = add_verb("export", "write a form that runs without Triptych")
    export.add_argument("--model", required=True, metavar="DIR", help="a saved pipeline")
    export.add_argument("--format", choices=get_args(ExportFormat), default="saved_model", help="default: saved_model")
    export.add_argument("--output", required=True, metavar="PATH", help="where to write")
    for verb in dict.fromkeys((train, evaluate, predict, export, *reading)):
        add_flags(verb, RuntimeConfig, shown=shown if verb is train else ("precision", "devices"))
    return parser


def _add_options(parser: argparse.ArgumentParser, kind: str, options: Sequence[ReaderOption | AnswerOption]) -> None:
    for option in options:
        kind_of_value = option.type if isinstance(option, AnswerOption) else str
        metavar = {int: "N", float: "X", str: "TEXT"}[kind_of_value]
        parsing: dict[str, Any] = {"metavar": metavar, "type": kind_of_value}
        flag = "--" + option.name.replace("_", "-")
        parser.add_argument(flag, dest=f"{kind}.{option.name}", help=option.help.replace("%", "%%"), **parsing)


def _verb_adder(verbs: Any) -> Callable[[str, str], argparse.ArgumentParser]:
    def add(name: str, description: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(
            name, help=description, description=description, allow_abbrev=False, formatter_class=_Formatter
        )
        return parser

    return add


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        # The full usage would repeat the forty flags listed below it.
        return f"usage: {self._prog} [flags]\n\n"
