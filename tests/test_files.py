"""Files and folders in the wrong place, and JSON files that a crash or a copy has damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.cli.verbs import is_finished
from fer_hpc.config import UserError, preset
from fer_hpc.config.commands import ReportConfig, SweepConfig
from fer_hpc.data.manifest import read_manifest, write_manifest
from fer_hpc.evaluation.results import read_scores
from fer_hpc.files import read_json, read_stored, write_bytes, write_text
from fer_hpc.report.read import collect as collect_for_report
from fer_hpc.report.report import report
from fer_hpc.run.folder import read_run_config
from fer_hpc.run.plugins import load_run_plugins
from fer_hpc.sweep.grid import check_sweep, grid
from fer_hpc.sweep.tables import best_of, collect


def finished(folder: Path) -> bool:
    return is_finished(preset("vgg", data=folder, run=folder))


def new_sweep(folder: Path) -> list[Any]:
    return grid(SweepConfig(data=folder, out=folder), preset("vgg", data=folder, run=folder))


def sweep_of_a_report(folder: Path) -> Any:
    (folder / "trials" / "one").mkdir(parents=True)
    for file in ("sweep.json", "trials/one/config.json"):
        (folder / file).write_text("{}")
    return collect_for_report((folder,))


READERS: list[tuple[str, Callable[[Path], object], str]] = [
    ("config.json", read_run_config, "restore it from a copy, or train again"),
    ("config.json", load_run_plugins, "restore it from a copy, or train again"),
    ("config.json", finished, "restore it from a copy, or train again"),
    ("manifest.json", read_manifest, "preprocess again"),
    ("manifest.json", finished, "preprocess again"),
    ("manifest.json", new_sweep, "preprocess again"),
    ("sweep.json", collect, "or sweep again"),
    ("best.json", best_of, "tune --collect writes it again"),
    ("summary.json", sweep_of_a_report, "tune --collect writes it again"),
    ("eval-val-flip.json", lambda folder: read_scores(folder / "eval-val-flip.json"), "evaluate"),
]


@pytest.mark.parametrize("content", ["", '{"science": {"lr": 0.0', "\0\0\0\0"])
@pytest.mark.parametrize(("name", "read", "remedy"), READERS)
def test_a_damaged_json_file_is_named_with_what_to_do(
    tmp_path: Path, name: str, read: Callable[[Path], object], remedy: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(empty, cut off.*{remedy}"):
        read(tmp_path)


def test_a_damaged_sweep_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    content = {"format": 1, "image_shape": [8, 8, 1], "classes": ["a", "b"], "splits": {}}
    write_manifest(tmp_path, content)
    trials = new_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        check_sweep(SweepConfig(data=tmp_path, out=tmp_path), trials)


def test_half_a_character_is_replaced_and_the_bytes_of_a_name_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(r'{"\ud800": "a\ud800\udfff", "name": "\udcff", "smile": "\ud83d\ude00"}')
    content = read_json(path)
    assert content == {"\ufffd": "a\U000103ff", "name": "\udcff", "smile": "\U0001f600"}
    write_text(path, content["name"])
    assert path.read_text() == r"\udcff"


def test_a_message_is_one_short_line_however_long_a_value_is(tmp_path: Path) -> None:
    assert len(str(UserError("many short words " * 1000))) < 4000
    with pytest.raises(UserError, match=r"--run /.{199}\.\.\.\[{199}: File name too long"):
        preset("vgg", data=tmp_path, run=tmp_path.parent / ("[" * 3000))


def test_a_missing_json_file_is_none(tmp_path: Path) -> None:
    assert read_stored(tmp_path / "config.json") is None
    assert read_json(tmp_path / "file" / "config.json") is None


@pytest.mark.parametrize(
    "command",
    [
        "train vgg --data d --run FILE",
        "train vgg --data FILE --run r",
        "train vgg --data d --run r --stage FILE/sub",
        "train_gan --data d --run FILE",
        "preprocess --source synthetic --count 9 --out FILE",
        "synthetic --out FILE",
        "evaluate FILE",
        "evaluate r --judge FILE",
        "generate --data d --run r --out FILE",
        "tune vgg --data d --out FILE",
        "train --from-sweep FILE --run r",
        "report r FILE",
        "report r --out FILE",
        "doctor FILE",
        "status FILE",
    ],
)
def test_a_file_in_place_of_a_folder_is_one_message(tmp_path: Path, command: str) -> None:
    file = tmp_path / "file.txt"
    file.write_text("")
    verb, *args = command.replace("FILE", str(file)).split()
    with pytest.raises(UserError, match=r"file\.txt.*: wanted a folder, but .* is a file"):
        configure(verb, args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["synthetic", "--out", ""], "--out '': wanted a path"),
        (["report", "r", "--out="], "--out '': wanted a path"),
        (["train", "vgg", "--data", "d", "--run", ""], "--run '': wanted a path"),
        (["report", ""], "one of the arguments is empty"),
        (["synthetic", "--out", "o", "--count", "10000001"], "--count 10000001: wanted 1 to"),
    ],
)
def test_an_empty_path_or_a_huge_count_is_refused(args: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure(args[0], args[1:])


def test_an_empty_text_is_allowed() -> None:
    args = "--source synthetic --count 9 --out o --classes".split()
    assert configure("preprocess", [*args, ""]).classes == ""


def test_an_empty_path_is_refused_from_python_too() -> None:
    with pytest.raises(UserError, match="--run '': wanted a path"):
        preset("vgg", data="d", run="")


@pytest.mark.parametrize("out", ["", "tb/report"])
def test_a_report_inside_a_run_folder_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "run" / "attempts").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is inside the run folder"):
        report(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "run" / out))
    assert not (tmp_path / "run" / "results.csv").exists()


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    """As root, a rename over /dev/null would put a file in its place."""
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        write_bytes(pipe, b"x")
    with pytest.raises(IsADirectoryError):
        write_bytes(folder, b"x")
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
