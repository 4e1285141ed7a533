"""`fer-hpc VERB ...`, the same commands as `python -m fer_hpc.VERB ...`.

Arguments are checked before torch, h5py or matplotlib is loaded, so that help and mistakes answer
at once.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fer_hpc import __version__
from fer_hpc.cli import jobs
from fer_hpc.cli.flags import HelpShown
from fer_hpc.cli.parse import configure_job
from fer_hpc.cli.table import VERBS
from fer_hpc.config import (
    EXIT_CRASHED,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    UserError,
    ranks_that_fit,
    unknown_name_error,
)
from fer_hpc.config.commands import RanksConfig
from fer_hpc.config.errors import one_line
from fer_hpc.config.plugins import plugin_mistakes
from fer_hpc.parallel.local import run_ranks
from fer_hpc.run.output import outlive_reader

TOO_FEW_THREADS = (
    "a thread cannot start: ulimit -u, or a limit of the site, allows this user too few processes "
    "and threads; raise it, or end others"
)

# Called by slurm/launch.sh; several: by a study.
MAX_NAME = 400  # characters of a path that an error shows
INTERNAL = {"begin": jobs.begin, "end": jobs.end, "several": jobs.several}
TRAINING = ("train", "train_gan", "tune", "study")
STUDIES = {"pipeline": jobs.pipeline, "sweep": jobs.sweep}  # several jobs that belong together


def main(args: list[str] | None = None, verb: str | None = None) -> int:
    """The exit code of one command line; `verb` stands before the process's own arguments."""
    if args is not None:
        return _main(args)
    _use_utf8()
    code = _main([verb, *sys.argv[1:]] if verb else sys.argv[1:])
    _settle_exit()
    return code


def _use_utf8() -> None:
    """Start again with UTF-8 for names of files where the locale has another encoding.

    The names in tables are UTF-8, and the data must not depend on the locale of a node.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _main(args: list[str]) -> int:
    if args[1:2] == ["--"]:  # torchrun needs it before arguments like --run, a prefix of its own
        args = [args[0], *args[2:]]
    if not args or args[0] in ("-h", "--help"):
        return run_command("", _help)
    name, rest = args[0], args[1:]
    if name == "--version":
        print(f"fer-hpc {__version__}")
        return EXIT_FINISHED
    if name in INTERNAL:
        return run_command(name, lambda: INTERNAL[name](rest))
    if name not in VERBS:
        return _refuse("", str(unknown_name_error("verb", name, list(VERBS))))
    return run_command(name, lambda: _run_verb(name, rest))


def _run_verb(name: str, args: list[str]) -> int:
    """Run a verb in this process or, with --procs N, as N ranks of this machine."""
    settings, config = configure_job(name, args)
    ranks = settings.build(RanksConfig).procs if RanksConfig in settings.values else 1
    if ranks > 1:
        fewer = None
        if getattr(config, "elastic", False):
            fewer = partial(ranks_that_fit, config.batch_size, getattr(config, "accumulate", 1))
        return run_ranks(ranks, name, settings.arguments(RanksConfig), fewer)
    return VERBS[name].run(config)


def _help() -> int:
    print("usage: fer-hpc VERB ...    (python -m fer_hpc VERB is the same)\n")
    for name, verb in VERBS.items():
        print(f"  {name:<12}{verb.help}")
    print("\nfer-hpc VERB --help lists the flags of one.")
    return EXIT_FINISHED


def job(script: str, verb: str, args: list[str] | None = None) -> int:
    """What jobs/SCRIPT.py does: submit `verb`, or a pipeline or sweep of several jobs."""
    if args is None:
        _use_utf8()
    arguments = sys.argv[1:] if args is None else args
    command = f"jobs/{script}.py"
    if verb in STUDIES:
        return run_command(command, lambda: STUDIES[verb](arguments))
    return run_command(command, lambda: jobs.submit(verb, arguments, command))


def _settle_exit() -> None:
    """The exit code of a command that has ended stands, whatever Python still has to free."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    # After python -m, Python ends by the signal where Ctrl-C came within an exec("..."), as in the
    # import of a dataclass; the next exec takes that back.
    exec("")


def run_command(name: str, command: Callable[[], int]) -> int:
    """The exit code of `command`. A mistake of the user is one message, never a traceback.

    What trains goes on where the reader of its output has gone; other commands end then.
    """
    with outlive_reader() if name in TRAINING else contextlib.nullcontext():
        return _run_command(name, command)


def _run_command(name: str, command: Callable[[], int]) -> int:
    if sys.__stderr__ and not faulthandler.is_enabled():
        # A bus error (a shard that is cut while it is mapped) would end without a word.
        faulthandler.enable(sys.__stderr__)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # messages say what is wrong with a picture
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no UTF-8
    try:
        with _interrupted_by_term(), plugin_mistakes():
            _check_folder()
            code = command()
        sys.stdout.flush()  # here, so that a closed pipe is noticed here
        return code
    except HelpShown:
        return EXIT_FINISHED
    except UserError as error:
        return _refuse(name, str(error))
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("fer_hpc"):
            raise
        return _refuse(
            name,
            f"{sys.executable} has no {error.name}: pip install -e . for it, or use another "
            "interpreter (FER_PYTHON, or fer_python in slurm/env.sh, for the scripts)",
        )
    except BrokenPipeError:  # the reader has closed, as head does: end as other programs do
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Without a file it may be a network that comes back: a scheduler may start it again.
        is_users = error.filename is not None or _is_full(error) or error.errno == errno.EMFILE
        return _refuse(name, system_error(error), EXIT_USER_ERROR if is_users else EXIT_CRASHED)
    except (ImportError, RuntimeError, MemoryError) as error:
        if "can't start new thread" in str(error):
            return _refuse(name, TOO_FEW_THREADS)
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            raise
        what = (str(error).splitlines() or ["out of memory"])[0]
        return _refuse(
            name,
            f"{what}; ulimit -v allows {limit / 1e9:.1f} GB of addresses, and libraries map more "
            "than they use: ulimit -v unlimited lifts it",
        )
    except SystemExit as end:  # no code of ours ends so: 0 would look like success
        if end.code == signal.SIGTERM:  # Ray ends so at this signal, until the sweep handles it
            return _stopped(name)
        frames = traceback.extract_tb(end.__traceback__)
        frame = [f for f in frames if "_sitebuiltins" not in f.filename][-1]
        return _refuse(name, f"{frame.filename}, line {frame.lineno}: it calls exit()")
    except KeyboardInterrupt:
        return _stopped(name)


@contextlib.contextmanager
def _interrupted_by_term() -> Iterator[None]:
    """SIGTERM as Ctrl-C, for what does not handle it itself; a second one ends the process."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    is_stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except UserError:
        if is_stopped:  # a library has swallowed it, and workers of the same group have ended
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_folder() -> None:
    """A UserError where the working directory is gone: libraries fail then in ways of their own."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory was deleted: cd to another one") from None


def _stopped(name: str) -> int:
    print(f"\nfer-hpc {name}: stopped; the same command continues from here", file=sys.stderr)
    return EXIT_RUN_AGAIN


def _refuse(name: str, message: str, code: int = EXIT_USER_ERROR) -> int:
    prefix = name if name.startswith("jobs/") else f"fer-hpc {name}".strip()
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return code


def _is_full(error: OSError) -> bool:
    """Whether a disk or quota is full; HDF5 has that only in the text of its errors."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def system_error(error: OSError) -> str:
    """An OSError as one line: what, which file, or where in the program if it names none."""
    what = error.strerror or str(error)
    if _is_full(error):
        what = "the disk or quota is full"
    elif error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        what = f"too many open files: ulimit -n allows {limit:,}; ulimit -n 1024 lifts it"
    if error.filename is not None:
        name = os.fsdecode(error.filename)
        if len(name) > MAX_NAME:
            name = f"{name[: MAX_NAME // 2]}...{name[-MAX_NAME // 2 :]} ({len(name):,} characters)"
        return one_line(f"{what}: {name}")
    try:
        sys.stdout.flush()
    except OSError:  # what could not be written is still in its buffer
        return f"{what}: standard output"
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{os.sep}fer_hpc{os.sep}" in frame.filename
    ]
    where = f" (in {ours[-1].name}, {ours[-1].filename}:{ours[-1].lineno})" if ours else ""
    return what.splitlines()[0] + where * (error.errno != errno.EMFILE)


if __name__ == "__main__":
    sys.exit(main())
