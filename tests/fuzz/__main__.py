"""Many inputs for every parser: python -m tests.fuzz --count 100000 [--only NAMES] [--seed N].

Prints a line for each parser; exit code 1 where an input breaks one, with the smallest such input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.guard import Broken, fuzz
from tests.fuzz.targets import TARGETS


def leaves(error: BaseException) -> list[BaseException]:
    """The single errors of a group of them."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return [leaf for each in inner for leaf in leaves(each)] or [error]


def describe(error: BaseException) -> str:
    """An error with its place in the package and the input that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fer_hpc/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "no place"
    notes = " ".join(" ".join(getattr(error, "__notes__", [])).split())
    return f"\n    {place} {type(error).__name__}: {str(error)[:300]}\n        {notes[:400]}"


def main() -> int:
    about, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=about)
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--only", default="", help="parsers with such texts in their names")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs")
    args = parser.parse_args()
    chosen = {
        name: make
        for name, make in TARGETS.items()
        if any(text in name for text in args.only.split(","))
    }
    each = -(-args.count // max(len(chosen), 1))
    total, broken = 0, []
    for name, make in chosen.items():
        begin = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = fuzz(make, Path(folder), each, args.seed, shrink=False)
                verdict = ""
            except (Exception, Broken) as error:
                done, verdict = 0, "BROKEN" + "".join(map(describe, leaves(error)))
                broken.append(name)
        total += done
        seconds = time.process_time() - begin
        print(f"{name:<24} {done:>8,} inputs {seconds:>7.1f} s  {verdict}".rstrip(), flush=True)
    print(f"{len(chosen)} parsers, {total:,} inputs, {len(broken)} broken: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
