"""Public forms in one file: Parquet as Hugging Face has it, zip and tar."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fer_hpc.config import UserError
from tests.helpers.forms import FER, FERPLUS, encoded, fer2013, ignored, rafdb_basic, read, save


def parquet(folder: Path, metadata: bool, readme: bool) -> None:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for split, n in (("train", 24), ("test", 16)):
        rows = [
            {"image": {"bytes": encoded(10 * (i % 8)), "path": f"{i}.png"}, "label": i % 8}
            for i in range(n)
        ]
        table = pa.Table.from_pylist(rows)
        if metadata:
            info = {"info": {"features": {"label": {"names": list(FERPLUS)}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=10)
    if readme:
        names = "".join(f"          '{i}': {name}\n" for i, name in enumerate(FERPLUS))
        head = (
            "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
        )
        text = f"{head}    dtype:\n      class_label:\n        names:\n{names}---\n"
        (folder / "README.md").write_text(text)


@pytest.mark.parametrize("where", ["metadata", "readme"])
def test_parquet_takes_the_names_that_the_set_states(tmp_path: Path, where: str) -> None:
    parquet(tmp_path / "hf", where == "metadata", where == "readme")
    found, plan = read(tmp_path, tmp_path / "hf")
    assert len(found) == 40
    assert all(label == FERPLUS[value // 10] for _, label, value in found.values())
    assert found["test-00000-of-00001.parquet#1.5"][0] == "test"
    assert plan.rows.class_map.source == "names of the label column"


def test_parquet_without_names_asks_for_them(tmp_path: Path) -> None:
    parquet(tmp_path / "hf", False, False)
    with pytest.raises(UserError, match="--classes NAME_OF_0"):
        read(tmp_path, tmp_path / "hf")
    one = tmp_path / "hf/test-00000-of-00001.parquet"
    found, _ = read(tmp_path, one, classes="ferplus")
    assert len(found) == 16
    assert {s for s, _, _ in found.values()} == {"test"}


def packed(folder: Path, target: Path) -> Path:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, f"top/{path.relative_to(folder)}")
            archive.writestr("__MACOSX/top/._x.png", b"x")
    else:
        with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
            for path in files:
                tar.add(path, f"top/{path.relative_to(folder)}")
    return target


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar"])
def test_archives_are_read_in_place(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "test"):
        for i in range(20):
            save(tmp_path / f"a/{split}/{('happy', 'sad')[i % 2]}/{i}.png", i)
    wanted, _ = read(tmp_path, tmp_path / "a", "folder")
    found, _ = read(tmp_path, packed(tmp_path / "a", tmp_path / f"a{suffix}"))
    assert found == wanted
    assert not list((tmp_path / "out").glob(".unpacked*"))
    rafdb = packed(rafdb_basic(tmp_path / "basic"), tmp_path / f"r{suffix}")
    assert len(read(tmp_path, rafdb)[0]) == 42
    fer2013(tmp_path / "f/fer2013.csv")
    found, _ = read(tmp_path, packed(tmp_path / "f", tmp_path / f"f{suffix}"))
    assert found["69"][1:] == (FER[69 % 7], 69)


def test_an_archive_leads_nowhere_else(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("../happy/1.png", "/happy/2.png", "happy/3.png", "sad/4.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(9))
            tar.addfile(info, io.BytesIO(encoded(9)))
        link = tarfile.TarInfo("happy/5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found, plan = read(tmp_path, tmp_path / "evil.tar", "folder", split="test")
    assert set(found) == {"happy/3.png", "sad/4.png"}
    assert ignored(plan) == {"paths that leave the archive": 2, "links in the archive": 1}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "out") == ["evil.tar"]
