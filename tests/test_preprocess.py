"""Faces into shards: their schema, the same bytes whoever makes them, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards, workers
from fer_hpc.data import preprocess as making
from fer_hpc.data.readers.affectnet import AffectNetFolder
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.synthetic import faces as synthetic
from fer_hpc.files import process_tag, sha256
from tests.conftest import Fer, Preprocess
from tests.helpers import processes
from tests.helpers.outputs import assert_kept, hashes


@pytest.fixture(scope="module")
def made(preprocess: Preprocess, affectnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preprocess") / "shards"
    done = preprocess("affectnet", out, "--input", affectnet, "--split", "report")
    assert done.returncode == 0, done.stderr
    return out


def test_shards_hold_the_full_schema(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert sum(split["n"] for split in manifest["splits"].values()) == 60
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            path = made / entry["file"]
            assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256(path))
            with h5py.File(path) as f:
                assert f["images"].shape == (entry["n"], 48, 48, 1)
                assert f["images"].chunks is None
                assert f["images"].id.get_offset() > 0
                assert set(f) == {"images", "source_id", *shards.COLUMNS}
                for name, (kind, shape) in shards.COLUMNS.items():
                    assert (f[name].dtype, f[name].shape) == (np.dtype(kind), (entry["n"], *shape))
                assert (f["synthetic"][()] == 1).all()
                assert np.isfinite(f["landmarks"][()]).all()
    assert manifest["faces"]["margin"] == 0.15


def test_a_mapped_row_is_the_face_that_was_read(made: Path, affectnet: Path) -> None:
    source = AffectNetFolder(affectnet)
    rows = source.rows()
    split = open_split(read_manifest(made), "train")
    for row in (0, len(split) - 1):
        number = rows.source_id.index(split.columns["source_id"][row].decode())
        face = source.face(source.rows().locators[number])
        box = faces.landmark_box(face.landmarks)
        reduced = faces.decode_scale(box, 48)
        image, to_crop, _ = faces.crop_and_resize(
            faces.decode(face.encoded, 1, reduced), box, 48, reduced
        )
        assert (split.images[0][row] == image).all()
        assert np.allclose(
            split.columns["landmarks"][row], face.landmarks * to_crop[:2] + to_crop[2:], atol=1e-3
        )
        assert split.columns["labels"][row] == rows.label[number] == synthetic.label_of(number)
        assert split.columns["image_hash"][row] == shards.image_hash(image)


def test_run_again_changes_nothing_and_says_so(
    preprocess: Preprocess, made: Path, affectnet: Path
) -> None:
    before = hashes(made)
    done = preprocess("affectnet", made, "--input", affectnet, "--split", "report")
    assert "nothing to do" in done.stdout
    assert hashes(made) == before


def test_a_damaged_shard_is_made_again(
    preprocess: Preprocess, made: Path, affectnet: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    data = bytearray((copy / "val-00000.h5").read_bytes())
    data[-100] ^= 1
    (copy / "val-00000.h5").write_bytes(data)
    preprocess("affectnet", copy, "--input", affectnet, "--split", "report")
    assert hashes(copy) == hashes(made)


def test_other_options_on_the_same_folder_are_refused(
    preprocess: Preprocess, made: Path, affectnet: Path
) -> None:
    done = preprocess("affectnet", made, "--input", affectnet, "--split", "report", "--size", 64)
    assert done.returncode == 2
    assert "other options" in done.stderr


def _refuse_the_later(task: int, is_finished: bool, out: Path) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(workers, "get_context", lambda _: multiprocessing.get_context("fork"))
    check = making.check_same_plan
    other = PreprocessConfig("synthetic", out, count=40, size=16, workers=1)

    def check_before_the_other(*arguments: object) -> None:
        check(*arguments)
        patch.setattr(making, "check_same_plan", check)
        making.preprocess(other)
        if not is_finished:
            (out / "manifest.json").unlink()

    patch.setattr(making, "check_same_plan", check_before_the_other)
    config = PreprocessConfig(
        "synthetic", out, count=40, size=8, workers=1, task=task, tasks=task + 1
    )
    with pytest.raises(UserError, match="another command writes such shards there"):
        making.preprocess(config)
    making.preprocess(other)


@pytest.mark.parametrize(("task", "is_finished"), [(0, False), (7, False), (0, True)])
def test_of_two_plans_at_the_same_time_the_later_is_refused(
    task: int, is_finished: bool, tmp_path: Path
) -> None:
    """The other command writes its shards, or all, after this one has looked at the folder.

    Task 7 of 8 has no shard of its own: it must not take those of the other for finished ones.
    Not in this process: its fork may wait for ever for a lock that one of its threads had.
    """
    out = tmp_path / "out"
    process = processes.FORKS.Process(target=_refuse_the_later, args=(task, is_finished, out))
    process.start()
    process.join(240)
    process.kill()
    process.join()
    assert process.exitcode == 0
    manifest = read_manifest(out)
    assert manifest.image_shape == (16, 16, 1)
    for entry in manifest.content["splits"].values():
        assert all(sha256(out / shard["file"]) == shard["sha256"] for shard in entry["shards"])
    assert not list((out / "parts").glob(".*"))


def test_a_folder_that_nothing_was_written_to_takes_other_options(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    flags = ("--count", 40, "--size", 16)
    (tmp_path / "parts").mkdir()  # as of a command that was stopped before its first shard
    assert preprocess("synthetic", tmp_path, *flags).returncode == 0
    shutil.rmtree(tmp_path / "parts" / "plan")  # as version 0.1.0 leaves it
    (tmp_path / "manifest.json").unlink()
    assert preprocess("synthetic", tmp_path, *flags).returncode == 0
    done = preprocess("synthetic", tmp_path, "--count", 40, "--size", 8)
    assert done.returncode == 2


def test_the_same_command_leaves_what_a_living_one_writes(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    living = tmp_path / f".train-00000.h5.{process_tag()}.tmp"
    gone = tmp_path / ".train-00000.h5.other-7.tmp"
    for path in (living, gone):
        path.touch()
    assert preprocess("synthetic", tmp_path, "--count", 40, "--size", 16).returncode == 0
    assert living.exists()
    assert not gone.exists()


def test_more_workers_than_this_machine_can_have_are_refused(fer: Fer, tmp_path: Path) -> None:
    source = ("--source", "synthetic", "--count", 300, "--workers", 1000)
    done = fer("preprocess", *source, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--workers 1,000: this process may use" in done.stderr
    assert not (tmp_path / "out").exists()


def test_number_of_workers_does_not_change_a_byte(fer: Fer, shards: Path, tmp_path: Path) -> None:
    source = ("--source", "synthetic", "--count", 240, "--size", 32)
    assert fer("preprocess", *source, "--workers", 2, "--out", tmp_path / "two").returncode == 0
    assert hashes(tmp_path / "two") == hashes(shards), "of one worker"


def test_nobody_is_in_two_splits(shards: Path) -> None:
    manifest = read_manifest(shards)
    people = [
        set(open_split(manifest, s).columns["group"].tolist()) for s in ("train", "val", "test")
    ]
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]


def test_truncated_jpeg_is_listed_and_the_rest_goes_on(
    fer: Fer, affectnet: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(affectnet, tmp_path / "faces")
    picture = copy / "train_set" / "images" / "7.jpg"
    picture.write_bytes(picture.read_bytes()[:3000])
    arguments = ("--source", "affectnet", "--input", copy, "--split", "report")
    done = fer("preprocess", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 rejected" in done.stdout
    assert "train_set/7,truncated JPEG" in (tmp_path / "out" / "rejects.csv").read_text()
    assert (
        sum(split["n"] for split in read_manifest(tmp_path / "out").content["splits"].values())
        == 59
    )
    strict = fer("preprocess", *arguments, "--out", tmp_path / "strict", "--max-rejects", 0.001)
    assert strict.returncode == 2
    assert "1 of 60 faces are unusable" in strict.stderr
    assert "truncated JPEG" in strict.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "affectnet", "--input", "/nowhere"), "no such folder"),
        (("--source", "fer2013", "--input", "/nowhere.csv"), "no such file"),
        (("--source", "fer2013"), "needs --input"),
        (("--source", "synthetic"), "--count"),
        (("--source", "synthetic", "--count", "5", "--size", "3"), "--size 3"),
        (("--source", "nonsense"), "nonsense"),
    ],
)
def test_bad_arguments_are_one_clear_message(
    fer: Fer, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = fer("preprocess", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_array_tasks_give_the_same_shards_as_one_process(fer: Fer, tmp_path: Path) -> None:
    # several shards
    arguments = "--source synthetic --count 70 --seed 3 --size 640 --channels 3".split()
    assert fer("preprocess", *arguments, "--out", tmp_path / "one").returncode == 0
    assert len(list((tmp_path / "one").glob("*.h5"))) >= 3
    for task in (2, 0, 1):
        done = fer(
            "preprocess", *arguments, "--out", tmp_path / "many", "--task", task, "--tasks", 3
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "many" / "manifest.json").exists() == (task == 1), (
            "the last task to finish merges"
        )
    assert hashes(tmp_path / "many") == hashes(tmp_path / "one")


def test_a_task_that_does_not_exist_is_refused(preprocess: Preprocess, tmp_path: Path) -> None:
    done = preprocess("synthetic", tmp_path, "--count", 70, "--task", 3, "--tasks", 3)
    assert done.returncode == 2
    assert "--task 3 of --tasks 3: wanted 0 to 2" in done.stderr


def test_preprocess_replaces_no_files_of_others(
    fer: Fer, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("preprocess", "--source", "synthetic", "--count", 100, "--size", 16, "--out")
    for name in ("manifest.json", "rejects.csv", "train-00000.h5", "parts/train-00000.json"):
        assert_kept(fer, out / name, *call, out, content=b'{"name": "app"}')
    done = fer(*call, finished_run)
    assert done.returncode == 2
    assert f"is inside the run folder {finished_run}" in done.stderr
    assert not (finished_run / "parts").exists()
    for _ in range(2):
        assert fer(*call, out).returncode == 0
