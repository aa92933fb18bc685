"""How a script ends: its exit code, and one line on stderr where the user can mend what is wrong."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.channel import WorkerLostError
from shared.distribution import LOST_CODE
from shared.pipeline import NotFittedError, TrainingInterrupted

DOMAINS = ("vision", "nlp", "recsys")
_USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,  # a file that is missing or closed to us, a full disk, a path that leads through a file
    NotFittedError,
    FloatingPointError,
    ImportError,
)
# Exit code of a training that stopped at a signal, its state being saved; shells give it to Ctrl-C.
INTERRUPTED_CODE = 130


@dataclass
class Outcome:
    """The exit code, and whether a training can be gone on with."""

    code: int = 0
    resumable: bool = False

    def take(self, code: int | None) -> None:
        """Take over the exit code of processes that did the work; None where there were none."""
        if code is not None:
            self.code, self.resumable = code, code in (INTERRUPTED_CODE, LOST_CODE)


@contextlib.contextmanager
def mapped_errors() -> Iterator[Outcome]:
    """Exit codes: 0 success, 2 the user's mistake in one line, 130 interrupted, 75 a worker lost, 1 our fault."""
    outcome = Outcome()
    try:
        yield outcome
    except TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        outcome.code, outcome.resumable = INTERRUPTED_CODE, True
    except WorkerLostError as error:
        print(f"error: {error}", file=sys.stderr)
        outcome.code, outcome.resumable = LOST_CODE, True
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        outcome.code = 130
    except BrokenPipeError:
        # The reader of our output has gone; closing stderr keeps Python from complaining at exit.
        sys.stderr.close()
    except _USER_ERRORS as error:
        if _is_ours(error):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            outcome.code = 2
        else:
            traceback.print_exc()
            outcome.code = 1
    except Exception:
        traceback.print_exc()
        outcome.code = 1


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by this project's checks or concerns a file, not from the depths of a library."""
    if isinstance(error, OSError):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    module = str(last.tb_frame.f_globals.get("__name__", ""))
    # Scripts import one another by their bare names.
    in_scripts = Path(last.tb_frame.f_code.co_filename).parent.name == "scripts"
    return in_scripts or module.split(".")[0] in {"shared", *DOMAINS, "__main__"}


def resume_command(arguments: list[str]) -> list[str]:
    """The command line that goes on with an interrupted training."""
    return arguments if "--resume" in arguments else [*arguments, "--resume"]
