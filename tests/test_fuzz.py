"""Whatever a file, a folder or a command line holds: a result or one message that names the file.

No traceback, no hang, no memory over 1 GB, no write outside the folder. 100 inputs a parser,
2,000 in `make test-long`, any number with `python -m tests.fuzz --count 100000`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_hpc.config import UserError
from tests.fuzz.guard import Broken, Fuzz, fuzz
from tests.fuzz.inputs import mutated
from tests.fuzz.targets import TARGETS

FEW, MANY = 100, 2000
# A page, two command lines, and a network that is loaded, an input.
COSTLY = {"page_of_a_run": 20, "flags_of_jobs": 30, "config_json": 50}
ONLY_LONG = {"study_driver", "results_csv"}  # a study's page an input


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ONLY_LONG])
def test_no_input_breaks(tmp_path: Path, name: str) -> None:
    fuzz(TARGETS[name], tmp_path, COSTLY.get(name, FEW))


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_none_of_many_inputs_breaks(tmp_path: Path, name: str) -> None:
    fuzz(TARGETS[name], tmp_path, MANY)


def traceback(box: Path, data: bytes) -> None:
    if data != b"good":
        raise KeyError("x")


def nameless(box: Path, data: bytes) -> None:
    if data != b"good":
        raise UserError("something is wrong")


def outside(box: Path, data: bytes) -> None:
    if data != b"good":
        (box / "../victim").write_text("x")


def memory(box: Path, data: bytes) -> None:
    if data != b"good":
        bytearray(1_200_000_000)


@pytest.mark.parametrize("broken", [traceback, nameless, outside, memory])
def test_what_no_input_may_do_is_noticed(tmp_path: Path, broken: object) -> None:
    def make(box: Path) -> Fuzz:
        return Fuzz(b"good", mutated(b"good"), lambda data: broken(box, data), ("f.csv",))

    with pytest.raises((KeyError, AssertionError, Broken)):
        fuzz(make, tmp_path, 20)
    assert not (tmp_path / "outer/victim").exists()
