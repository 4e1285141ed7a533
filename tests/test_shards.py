"""Opening shards: what is not as the manifest states is refused, and nothing leaves the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.data import checksums
from fer_hpc.data.account import summary
from fer_hpc.data.checksums import RECORD, verify_shards
from fer_hpc.data.manifest import fingerprint
from fer_hpc.data.shards import COLUMNS, open_split, read_manifest, write_manifest, write_shard
from fer_hpc.data.staging import staged
from fer_hpc.files import process_place, write_json

SHAPE, CLASSES = (8, 8, 1), ("a", "b", "c")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One split of two shards with 6 and 4 faces."""
    folder = tmp_path / "data"
    folder.mkdir()
    entries, counts = [], np.zeros(len(CLASSES), int)
    for k, n in enumerate((6, 4)):
        rows = {name: np.zeros((n, *shape), kind) for name, (kind, shape) in COLUMNS.items()}
        rows["labels"] = np.arange(n) % len(CLASSES)
        rows["images"] = np.random.default_rng(k).integers(0, 256, (n, *SHAPE), np.uint8)
        rows["source_id"] = np.arange(n).astype(str).astype(object)
        entries.append(write_shard(folder / f"train-{k:05d}.h5", rows, {}))
        counts += np.bincount(rows["labels"], minlength=len(CLASSES))
    by_class = dict(zip(CLASSES, counts.tolist(), strict=True))
    split = {"n": 10, "class_counts": by_class, "shards": entries}
    write_manifest(
        folder,
        {
            "format": 1,
            "image_shape": list(SHAPE),
            "classes": list(CLASSES),
            "splits": {"train": split},
        },
    )
    return folder


def test_images_in_parts_make_the_same_file(tmp_path: Path) -> None:
    n = 5
    rows = {name: np.zeros((n, *shape), kind) for name, (kind, shape) in COLUMNS.items()}
    rows["source_id"] = np.arange(n).astype(str).astype(object)
    images = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), np.uint8)
    no_utf8 = np.array(["caf\udce9"] * n, dtype=object)
    extra = {"age": np.arange(n), "file": no_utf8}
    whole = write_shard(tmp_path / "train-00000.h5", {"images": images, **rows}, extra)
    parts = [images[:0], images[:2], images[2:2], images[2:], images[:0]]
    assert write_shard(tmp_path / "train-00000.h5", {"images": parts, **rows}, extra) == whole
    with h5py.File(tmp_path / "train-00000.h5") as f:
        assert np.array_equal(f["images"], images)
        assert f["columns/file"][0] == b"caf\\udce9"
    with pytest.raises(ValueError, match="group has 5 rows, images 2"):
        write_shard(tmp_path / "train-00000.h5", {"images": parts[:2], "group": rows["group"]}, {})


def test_too_little_memory_for_hdf5_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Can't synchronously write data (unable to allocate memory block)")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(MemoryError, match="unable to allocate"):
        write_shard(tmp_path / "train-00000.h5", {"images": np.zeros((1, *SHAPE), np.uint8)}, {})


def rewrite(data: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a shard's content; the manifest then states its new size and checksum."""
    path = data / "train-00000.h5"
    with h5py.File(path, "r+") as f:
        change(f)
    content = json.loads((data / "manifest.json").read_text())
    entry = content["splits"]["train"]["shards"][0]
    entry["bytes"] = path.stat().st_size
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(data, content)


def put(name: str, make: Callable[[Any], Any], **options: Any) -> Callable[[h5py.File], object]:
    """Replaces a data set by `make` of its values."""

    def change(f: h5py.File) -> None:
        values = f[name][()]
        del f[name]
        f.create_dataset(name, data=make(values), **options)

    return change


def same(values: Any) -> Any:
    return values


def in_another_file(link: Any) -> Callable[[h5py.File], object]:
    def change(f: h5py.File) -> None:
        del f["images"]
        f["images"] = link

    return change


def external_bytes(f: h5py.File) -> None:
    del f["images"]
    raw = str(Path(f.filename).with_name("raw.bin"))
    f.create_dataset("images", (6, *SHAPE), "u1", external=[(raw, 0, h5py.h5f.UNLIMITED)])


def virtual(f: h5py.File) -> None:
    del f["images"]
    layout = h5py.VirtualLayout((6, *SHAPE), "u1")
    layout[:] = h5py.VirtualSource("train-00001.h5", "images", (6, *SHAPE))
    f.create_virtual_dataset("images", layout)


def unallocated(f: h5py.File) -> None:
    del f["images"]
    f.create_dataset("images", (6, *SHAPE), "u1")


WRONG: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "compressed": (put("images", same, compression="gzip"), "compressed"),
    "chunked": (put("images", same, chunks=(1, *SHAPE)), "chunked"),
    "virtual": (virtual, "virtual"),
    "bytes of another file": (external_bytes, "in another file"),
    "link to another file": (
        in_another_file(h5py.ExternalLink("train-00001.h5", "images")),
        "images are missing, or a link",
    ),
    "soft link": (in_another_file(h5py.SoftLink("/labels")), "images are missing, or a link"),
    "without bytes": (unallocated, "contiguous"),
    "floats": (put("images", lambda v: v.astype(np.float32)), "images are float32"),
    "signed": (put("images", lambda v: v.astype(np.int8)), "images are int8"),
    "another size": (put("images", lambda v: v[:, :4]), "wanted one contiguous block of uint8"),
    "fewer images": (put("images", lambda v: v[:5]), "wanted one contiguous block of uint8"),
    "fewer labels": (put("labels", lambda v: v[:5]), "labels are int64 .5., wanted int64 .6."),
    "float labels": (put("labels", lambda v: v.astype(float)), "labels are float64"),
    "a label too high": (put("labels", lambda v: v + 1), "labels are 1 to 3, wanted 0 to 2"),
    "a negative label": (put("labels", lambda v: v - 1), "labels are -1 to 1, wanted 0 to 2"),
    "other labels": (put("labels", lambda v: v * 0), "other numbers of faces"),
    "fewer ids": (put("source_id", lambda v: v[:5]), "source_id has not 6 rows"),
    "landmarks of 5 points": (put("landmarks", lambda v: v[:, :5]), "landmarks are float32"),
    "no valence": (lambda f: f.__delitem__("valence"), "valence are missing"),
}


def test_a_manifest_of_an_older_version_states_less(data: Path, tmp_path: Path) -> None:
    content = read_manifest(data).content
    for name in ("faces", "source", "split_rule", "notes"):
        content.pop(name, None)
    write_json(tmp_path / "manifest.json", content | {"rejects": {"n": 0}, "empty_boxes": 0})
    assert "(split unknown)" in summary(tmp_path)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_manifest_does_not_state_is_refused_at_opening(data: Path, wrong: str) -> None:
    assert len(open_split(read_manifest(data), "train")) == 10
    change, words = WRONG[wrong]
    rewrite(data, change)
    with pytest.raises(UserError, match=words) as error:
        open_split(read_manifest(data), "train")
    assert str(data) in str(error.value)


def edited(data: Path, change: Callable[[dict[str, Any]], object], sign: bool = True) -> Path:
    """Change manifest.json by hand; its fingerprint is right again if `sign`."""
    content = json.loads((data / "manifest.json").read_text())
    change(content)
    if sign:
        content["fingerprint"] = fingerprint(content)
    (data / "manifest.json").write_text(json.dumps(content))
    return data


def first_shard(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["splits"]["train"]["shards"][0].update(fields)


@pytest.mark.parametrize(
    "name", ["../victim/x.h5", "/victim/x.h5", "sub/x.h5", "..", "", ".hidden", "train-00001.h5"]
)
def test_a_shard_is_a_file_of_its_folder(data: Path, name: str) -> None:
    edited(data, first_shard(file=name))
    with pytest.raises(UserError, match="is not the name of a file of its own"):
        read_manifest(data)


@pytest.mark.parametrize("found", ["../victim", "", "0123456789abcdef", "x" * 16])
def test_a_fingerprint_is_the_computed_one(data: Path, tmp_path: Path, found: str) -> None:
    edited(data, lambda content: content.update(fingerprint=found), sign=False)
    with pytest.raises(UserError, match=r"fingerprint .* does not belong to its content"):
        read_manifest(data)


@pytest.mark.parametrize(
    "change",
    [
        first_shard(n="6"),
        first_shard(n=-6),
        first_shard(sha256="../x"),
        lambda content: content["splits"].update(extra=content["splits"]["train"]),
        lambda content: content["splits"]["train"].update(class_counts={"a": 10}),
        lambda content: content.update(classes=["a", "a", "b"]),
        lambda content: content.update(image_shape=[8, 0, 1]),
        lambda content: content["splits"]["train"].update(n=11),
        lambda content: content["splits"]["train"].update(shards=[]),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    data: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edited(data, change)
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest of shards"):
        read_manifest(data)


def test_a_count_that_the_shards_do_not_have_is_refused(data: Path) -> None:
    def move_one(content: dict[str, Any]) -> None:
        counts = content["splits"]["train"]["class_counts"]
        first, second = list(counts)[:2]
        counts[first], counts[second] = counts[first] - 1, counts[second] + 1

    edited(data, move_one)
    with pytest.raises(UserError, match="other numbers of faces"):
        open_split(read_manifest(data), "train")


def test_a_copy_on_the_node_is_verified_and_cleaned(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    copy = tmp_path / "stage" / manifest.fingerprint
    copy.mkdir(parents=True)
    left = copy / f".train-00000.h5.{process_place()}-4194305.tmp"  # above every process id
    left.write_text("a killed process began it")
    assert len(open_split(staged(manifest, tmp_path / "stage"), "train")) == 10
    assert not left.exists()
    shutil.rmtree(copy)
    zero_bytes(data)
    with pytest.raises(UserError, match="does not have the checksum"):
        staged(manifest, tmp_path / "stage")
    assert not list(copy.glob("*.h5")) + list(copy.glob(".*.tmp"))


def test_a_copy_of_another_user_is_used_or_left_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, stage = read_manifest(data), tmp_path / "stage"
    copy, own = stage / manifest.fingerprint, stage / f"{manifest.fingerprint}-{os.getuid()}"
    staged(manifest, stage)
    forbidden: list[tuple[Path, int]] = [(copy, os.W_OK)]

    def access(path: Path, mode: int) -> bool:  # root may do all
        return not any(Path(path) == each and mode & bits for each, bits in forbidden)

    monkeypatch.setattr(os, "access", access)
    written = (copy / "manifest.json").stat().st_mtime_ns
    assert staged(manifest, stage).folder == copy
    assert (copy / "manifest.json").stat().st_mtime_ns == written
    (copy / "train-00000.h5").write_bytes(b"half")
    assert staged(manifest, stage).folder == own, "theirs is not whole, and closed"
    shutil.rmtree(own)
    shutil.copy(data / "train-00000.h5", copy)
    forbidden.append((copy / "train-00000.h5", os.R_OK))
    assert staged(manifest, stage).folder == own, "theirs cannot be read"


def zero_bytes(data: Path, name: str = "train-00000.h5") -> None:
    """Zero some pixels in place."""
    with (data / name).open("r+b") as f:
        images: Any = open_split(read_manifest(data), "train").images[0]
        f.seek(images.offset)
        f.write(bytes(100))


def test_checksums_are_read_once_until_a_shard_is_touched(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda path: (read.append(path.name), digest(path))[1])
    manifest, names = read_manifest(data), ["train-00000.h5", "train-00001.h5"]
    verify_shards(manifest, ["train"], tmp_path)
    verify_shards(manifest, ["train"], tmp_path)
    assert read == names
    times = (data / names[0]).stat()
    zero_bytes(data)
    os.utime(data / names[0], ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync --times does
    with pytest.raises(UserError, match=r"train-00000\.h5 does not have the checksum"):
        verify_shards(manifest, ["train"], tmp_path)
    assert read == [*names, names[0]]


def test_what_was_verified_is_remembered_elsewhere_for_data_that_one_may_only_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / RECORD).mkdir()  # a test as root may write everywhere
    run = tmp_path / "run"
    run.mkdir()
    verify_shards(read_manifest(data), ["train"], run)
    monkeypatch.setattr(checksums, "sha256", lambda _: "read again")
    verify_shards(read_manifest(data), ["train"], run)
    (run / RECORD).write_text('{"train-00000.h5": 3}')
    with pytest.raises(UserError, match="does not have the checksum"):
        verify_shards(read_manifest(data), ["train"], run)
