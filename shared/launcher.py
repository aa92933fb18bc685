"""Several workers on this machine, to try out what runs on many: `train ... --workers local:2`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

# Set for the processes, which then leave it to us to say how the whole is resumed.
LAUNCHED = "TRIPTYCH_LAUNCHED"
# The first worker that fails says why; the others stop by themselves, within the time in which they notice.
_SECONDS_TO_END = 60.0
_SECONDS_TO_SHOW = 5.0


def local_workers(workers: str) -> int | None:
    """How many processes "local:N" asks for; None for anything else.

    Raises:
        ValueError: where N is no number from 1 on.
    """
    if not workers.startswith("local:"):
        return None
    if not re.fullmatch(r"local:[1-9]\d*", workers):
        raise ValueError(f"workers=local:N takes a number of processes from 1 on; received {workers!r}.")
    return int(workers.removeprefix("local:"))


def run_local_workers(count: int, command: Sequence[str]) -> int:
    """Run a script's command line in `count` processes that train together; returns the exit code.

    The first one's output is shown as it is; of the others what they write to stderr, each line with their number.
    SIGTERM and SIGINT are handed on to all.
    """
    addresses = ",".join(f"localhost:{port}" for port in _free_ports(count))
    own = _without_workers(command)
    children: list[subprocess.Popen[bytes]] = []
    for index in range(count):
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if index else {}
        arguments = [sys.executable, *own, "--workers", addresses, "--worker-index", str(index)]
        # A session of its own: Ctrl-C reaches the workers once, through us, and not from the terminal as well.
        environment = os.environ | {LAUNCHED: "1"}
        children.append(subprocess.Popen(arguments, start_new_session=True, env=environment, **quiet))
    showing = [
        threading.Thread(target=_show, args=(index, child.stderr), daemon=True)
        for index, child in enumerate(children[1:], start=1)
    ]
    for thread in showing:
        thread.start()

    def hand_on(number: int, _: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        codes = [children[0].wait(), *(_ended(child) for child in children[1:])]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            child.kill()
        for thread in showing:
            thread.join(_SECONDS_TO_SHOW)
    code = next((code for code in codes if code), 0)
    return code if code >= 0 else 128 - code  # as shells say that a signal ended a process


def _ended(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _show(index: int, stream: Any) -> None:
    with stream:
        for line in stream:
            print(f"[worker {index}] {line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


def _without_workers(command: Sequence[str]) -> list[str]:
    """The command without its --workers flag."""
    kept, skip = [], False
    for argument in command:
        if not skip and not argument.startswith("--workers="):
            skip = argument == "--workers"
            kept += [] if skip else [argument]
        else:
            skip = False
    return kept


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at just now."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
