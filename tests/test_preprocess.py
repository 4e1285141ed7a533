from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
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
from tests.conftest import Fer, Preprocess, command
from tests.helpers import processes
from tests.helpers.outputs import assert_kept
from tests.helpers.waiting import PATIENCE


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.suffix in (".h5", ".json") and p.name[0] != "."  # trainings note checksums there
    }


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


def processes_of(group: int) -> list[str]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgid = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgid) == group and state not in "ZX":
                found.append(path.parent.name)
    return found


def until(condition: Callable[[], bool], seconds: float = 10 * PATIENCE) -> bool:
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.long
def test_killed_at_any_moment_it_ends_with_the_same_bytes(fer: Fer, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    arguments = ("--source", "synthetic", "--count", 300, "--seed", 5, "--workers", 2)
    assert fer("preprocess", *arguments, "--out", whole).returncode == 0
    killed = tmp_path / "killed"
    for delay_s in (0.3, 1.6, 2.4):
        process = subprocess.Popen(
            command("preprocess", *arguments, "--out", killed), start_new_session=True
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert until(lambda group=process.pid: not processes_of(group)), (
            "workers outlive their parent"
        )
    assert fer("preprocess", *arguments, "--out", killed).returncode == 0
    assert hashes(killed) == hashes(whole)
    assert not list(killed.glob(".*.tmp"))


def test_a_job_that_is_killed_as_a_whole_leaves_no_memory(tmp_path: Path) -> None:
    def segments() -> set[str]:
        return {path.name for path in Path("/dev/shm").glob("psm_*")}

    def maps(pid: str) -> bool:
        with contextlib.suppress(OSError):
            return "memfd:faces" in (Path("/proc") / pid / "maps").read_text()
        return False

    before = segments()
    source = ("--source", "synthetic", "--count", 2000, "--workers", 2, "--out", tmp_path / "out")
    process = subprocess.Popen(command("preprocess", *source), start_new_session=True)
    assert until(lambda: segments() > before or any(map(maps, processes_of(process.pid))))
    os.killpg(process.pid, signal.SIGKILL)  # Python's own tracker of such memory as well
    process.wait()
    assert segments() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_its_workers_start_is_one_line(number: int, tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from fer_hpc.cli.main import main; sys.exit(main())"  # a shell's & ignores SIGINT
    source = ("--source", "synthetic", "--count", "100000", "--workers", "2")  # for minutes
    call = [sys.executable, "-c", code, "preprocess", *source, "--out", str(tmp_path / "out")]
    with subprocess.Popen(call, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr
        assert until(lambda: len(processes_of(process.pid)) > 2)
        while process.poll() is None:  # again, where an imported library has swallowed it
            os.killpg(process.pid, number)  # as a terminal or a scheduler sends it
            until(lambda: process.poll() is not None, 20)
        text = process.stderr.read().decode()
        assert process.returncode == 75, text
    assert "Traceback" not in text
    assert "the same command continues" in text


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


def test_a_shard_that_was_cut_off_is_named_at_open(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "cut")
    path = copy / "train-00000.h5"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000\.h5 has .* bytes, the manifest states"):
        open_split(read_manifest(copy), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.h5 is missing"):
        open_split(read_manifest(copy), "train")


@pytest.mark.parametrize("form", ["compressed", "chunked", "float"])
def test_images_that_cannot_be_mapped_are_refused_not_read_as_zeros(
    shards: Path, tmp_path: Path, form: str
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    path = copy / "val-00000.h5"
    with h5py.File(path, "r+") as f:
        images = f["images"][()]
        del f["images"]
        options = {"compressed": {"compression": "gzip"}, "chunked": {"chunks": (1, 32, 32, 1)}}
        values = images.astype(np.float32) if form == "float" else images
        f.create_dataset("images", data=values, **options.get(form, {}))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"]["shards"][0]["bytes"] = path.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="wanted one contiguous block of uint8"):
        open_split(read_manifest(copy), "val")


def noise_pictures(folder: Path, count: int) -> Path:
    """Class folders of random 48x48 pictures."""
    for i in range(count):
        path = folder / ("angry", "sad")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (48, 48), np.uint8)
        cv2.imwrite(str(path), noise)
    return folder


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc for a library that refuses locks")
def test_shards_are_written_where_locks_are_refused(tmp_path: Path) -> None:
    code = "int flock(int f, int o) { (void)f; (void)o; errno = ENOLCK; return -1; }"
    (tmp_path / "locks.c").write_text(f"#include <errno.h>\n{code}\n")
    library = tmp_path / "locks.so"
    compile_it = ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"]
    subprocess.run(compile_it, check=True)
    source = ("--source", "folder", "--input", noise_pictures(tmp_path / "faces", 40))
    done = subprocess.run(
        command("preprocess", *source, "--workers", 1, "--out", tmp_path / "out"),
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_one_message_and_loses_nothing(fer: Fer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        source = ("--source", "folder", "--input", noise_pictures(tmp_path / "faces", 80))
        arguments = (*source, "--size", 128, "--workers", 1, "--out", disk / "shards")
        done = fer("preprocess", *arguments)
        assert done.returncode == 2
        assert "train-00000.h5" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((disk / "shards").glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        again = fer("preprocess", *arguments)
        assert again.returncode == 0, again.stderr
        assert read_manifest(disk / "shards").n("train") > 40
    finally:
        subprocess.run(["umount", disk], check=True)


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


def test_shared_memory_that_is_used_again(preprocess: Preprocess, tmp_path: Path) -> None:
    """More blocks than there are slots for: each image is the one that its row was hashed from."""
    n, size = 700, 512  # 170 faces a shard, 5 a block, 93 slots
    (tmp_path / "arrays").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4), np.uint8)
    np.save(tmp_path / "arrays/X_train.npy", images)
    np.save(tmp_path / "arrays/y_train.npy", np.arange(n) % 7)
    flags = ("--input", tmp_path / "arrays", "--size", size, "--channels", 3)
    done = preprocess("arrays", tmp_path / "shards", *flags, "--classes", "fer2013")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "shards")
    seen = 0
    for name in shards.SPLITS:
        split = open_split(manifest, name)
        images_of = itertools.chain.from_iterable(split.images)
        for image, stored in zip(images_of, split.columns["image_hash"], strict=True):
            assert shards.image_hash(image) == stored
            seen += 1
    assert seen == n


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


@pytest.mark.parametrize(
    ("when", "code"),
    [("atexit.register(interrupt)", 0), ("m._help = lambda: exec('interrupt()')", 75)],
)
def test_ctrl_c_at_the_end_keeps_the_exit_code(when: str, code: int, tmp_path: Path) -> None:
    """As Python ends; and in an exec, as of a dataclass that is imported."""
    lines = [
        "import atexit, signal, sys",
        "from fer_hpc.cli import main as m",
        "def interrupt(): signal.raise_signal(signal.SIGINT)",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        when,
        "sys.argv[1:] = ['--help']",
        "raise SystemExit(m.main())",
    ]
    (tmp_path / "ends.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-m", "ends"], cwd=tmp_path, capture_output=True)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
