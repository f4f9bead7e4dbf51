"""What every command shares: arguments, help, exit codes, progress bars. A script adds what the command does.

Exit status: 0 done; 2 the user's mistake, said in one line on stderr with the remedy; 1 ours, with a traceback;
130 and 143 stopped by Ctrl-C and by SIGTERM, after cleaning up.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from livetalk import config

log = logging.getLogger(__name__)

OPTIONS = ("--config", "--dry-run", "--help")
LINE_SECONDS = 10.0
NO_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
"""What an operating system says of places that a user has named, and that cannot be read or written."""
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Parser(argparse.ArgumentParser):
    """Argument mistakes become ValueError, so that they end in one line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows the usage")


def run_command(
    name: str,
    about: str,
    act: Callable[[Any, bool], None],
    arguments: Sequence[str] | None = None,
    help_keys: str = "",
    choose: Callable[[str], Path | None] = lambda name: None,
    bare: str = "",
) -> int:
    """Runs `bash scripts/NAME.sh [--config FILE] [--dry-run] [--help] [key=value ...]`; returns the exit status.

    act is called with the loaded config of schema `name` and whether it is a dry run. about: the first line of the
    help; help_keys: a few lines on the keys that matter; choose: gives the config file to use without --config, if any;
    bare: the key that an argument without a key sets, "" for none.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be no UTF-8
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        options = _parse(name, about, help_keys, sys.argv[1:] if arguments is None else list(arguments))
        if options is not None:
            options.overrides = [f"{bare}={word}" if bare and "=" not in word else word for word in options.overrides]
            act(_load(name, options.config or choose(name), options.overrides), options.dry_run)
        sys.stdout.flush()
        return 0
    except ValueError as error:
        log.debug("the mistake in full", exc_info=error)
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {place_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped, nothing was left behind", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def place_of(error: OSError) -> str:
    """The line for a place that a user has named and that cannot be read or written; other errors are raised again."""
    if error.errno not in NO_PLACE or error.filename is None:
        raise error
    return f"{error.filename} cannot be used ({error.strerror}): name another place, make room, or mend its rights"


def nano_or_debug(name: str) -> Path:
    """The config that a training command runs without --config: the nano run where there is a GPU, else the debug run,
    which makes its own data and takes seconds. Prints which."""
    import torch

    seen = torch.cuda.is_available()
    path = CONFIGS / (f"{name}.yaml" if seen else f"{name}_debug.yaml")
    why = "a GPU" if seen else "no GPU: it shows that all works, what it learns and measures means nothing"
    print(f"{name}: configs/{path.name}, because PyTorch sees {why}; --config names another")
    return path


def command_of(name: str, settings: Mapping[str, Any]) -> str:
    """The line that runs a command with these settings, to be copied into a shell."""
    return shlex.join(["bash", f"scripts/{name}.sh", *(f"{key}={value}" for key, value in settings.items())])


def _load(name: str, path: str | Path | None, overrides: list[str]) -> Any:
    named = config.run_of(path, name)
    if isinstance(named, str) and named in config.RUNS and not issubclass(config.RUNS[named], config.RUNS[name]):
        raise ValueError(f"config {path} is for {named}: run bash scripts/{named}.sh --config {shlex.quote(str(path))}")
    return _from_anywhere(config.load(path, overrides, run=name))


def _from_anywhere(run: Any) -> Any:
    """The shipped family is this package's, whatever folder a command is called from."""
    shipped = Path(config.OdeRun().family)
    if "family" not in {entry.name for entry in fields(run)} or Path(run.family) != shipped or shipped.is_dir():
        return run
    return replace(run, family=os.path.relpath(Path(__file__).resolve().parents[1] / shipped))


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _parse(name: str, about: str, help_keys: str, arguments: list[str]) -> argparse.Namespace | None:
    for argument in arguments:
        word, equals, value = argument.partition("=")
        if equals and not value:
            raise ValueError(f"{word}= has no value: give one, or leave it out for the default")
        if word.startswith("-") and word not in (*OPTIONS, "-h"):
            near = get_close_matches(word, OPTIONS, n=1)
            remedy = (
                f"did you mean {near[0]}?" if near else f"settings are written {word.lstrip('-')}=VALUE, without dashes"
            )
            raise ValueError(f"unknown option {word}: {remedy}")
    parser = Parser(prog=f"scripts/{name}.sh", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    if not options.help:
        return options
    print(_help(name, about, help_keys))
    return None


def _help(name: str, about: str, help_keys: str) -> str:
    lines = [
        about,
        "",
        f"usage: bash scripts/{name}.sh [--config FILE] [--dry-run] [--help] [key=value ...]",
        "",
        "  --config FILE  a YAML file of settings, see configs/; key=value on the command line wins over it",
        "  --dry-run      builds everything without memory or weights and says how much memory a run takes",
    ]
    if help_keys:
        lines += ["", *(f"  {line}" for line in help_keys.strip().splitlines())]
    lines += ["", "all keys and their defaults:"]
    lines += [f"  {key}={_shown(value)}" for key, value in config.flat(config.RUNS[name]()).items() if key != "run"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


class Bars:
    """Progress on stderr, one bar a stage, as a callable (stage, done, total). Where stderr is no terminal, a log or a
    pipe, plain lines: one at the end of a stage, and one every LINE_SECONDS."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}
        self._stack = ExitStack()
        self._told: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._terminal:
            self._tell(stage, done, total)
            return
        from tqdm import tqdm

        if stage not in self._bars:
            layout = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
            bar = tqdm(desc=f"{stage:<10}", total=total, bar_format=layout, file=sys.stderr, mininterval=0.2)
            self._bars[stage] = self._stack.enter_context(bar)
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done >= total:
            bar.refresh()

    def _tell(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told.setdefault(stage, now) >= LINE_SECONDS or done >= total:
            self._told[stage] = now
            print(f"{stage:<10} {done}/{total}", file=sys.stderr, flush=True)
