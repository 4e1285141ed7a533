"""The public forms of data, each in exactly the layout that people download."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.faces import decode
from fer_hpc.data.plan import Plan, make_plan
from fer_hpc.data.readers.ckplus import CkPlus
from fer_hpc.data.readers.ferplus import decide
from fer_hpc.data.sources import open_source, resolve_source, source_spec
from fer_hpc.data.tree import Tree

RAF = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
FER = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
FERPLUS = ("Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt")


def encoded(value: int, suffix: str = ".png") -> bytes:
    """A picture of one gray value, by which its face is known."""
    return cv2.imencode(suffix, np.full((100, 100, 3), value, np.uint8))[1].tobytes()


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if path.suffix in (".png", ".jpg", ".tiff") else ".jpg"
    path.write_bytes(encoded(value, suffix))


def save_csv(path: Path, head: str, lines: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([head.split(","), *lines])
    return path


Read = dict[str, tuple[str, str, int]]  # id -> split, class, gray value of the face


def read(out: Path, path: Path, source: str = "auto", **flags: object) -> tuple[Read, Plan]:
    """What preprocess would make of an input."""
    config = PreprocessConfig(source=source, input=path, out=out / "out", **flags)
    config, _ = resolve_source(config)
    spec = source_spec(config.source)
    with open_source(spec, config) as opened:
        plan = make_plan(config, spec, opened)
        found = {}
        for shard in plan.shards:
            for i in shard.rows.tolist():
                face = opened.face(plan.rows.locators[i])
                pixels = decode(face.encoded, 1) if face.encoded else face.pixels
                value = round(float(np.mean(pixels)))
                label = plan.classes[plan.rows.label[i]]
                found[plan.rows.source_id[i]] = (shard.split, label, value)
    return found, plan


def ignored(plan: Plan) -> dict[str, int]:
    return {reason: kind.n for reason, kind in plan.rows.ignored.kinds.items()}


# ---- RAF-DB


def rafdb_basic(root: Path) -> Path:
    lines = []
    for split in ("train", "test"):
        for i in range(1, 22):
            save(root / f"Image/aligned/{split}_{i:05d}_aligned.jpg", 10 * (i % 7 + 1))
            lines.append(f"{split}_{i:05d}.jpg {i % 7 + 1}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel/list_patition_label.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("entry", ["", "EmoLabel/list_patition_label.txt"])
def test_rafdb_as_its_authors_give_it(tmp_path: Path, entry: str) -> None:
    found, plan = read(tmp_path, rafdb_basic(tmp_path / "basic") / entry)
    assert len(found) == 42
    assert found["test_00003.jpg"] == ("test", RAF[3], 40)
    assert all(label == RAF[value // 10 - 1] for _, label, value in found.values())
    assert {s for s, _, _ in found.values()} == {"train", "val", "test"}  # val is cut from train
    assert "aligned faces are taken" in plan.rows.notes
    assert plan.rows.class_map.source == "RAF-DB's numbers"


def test_a_face_that_a_list_names_twice_has_one_label_or_none(tmp_path: Path) -> None:
    root = rafdb_basic(tmp_path / "basic")
    with (root / "EmoLabel/list_patition_label.txt").open("a") as f:
        f.write("train_00001.jpg 2\ntrain_00003.jpg 5\n")
    found, plan = read(tmp_path, root)
    rejects = [("train_00001.jpg", "duplicate id"), ("train_00003.jpg", "two labels")]
    assert plan.rows.rejects == [*rejects, rejects[1]]
    assert len(found) == 41 and "train_00003.jpg" not in found


def test_rafdb_in_numbered_folders_with_tables(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = []
        for c in range(1, 8):
            for k in range(4):
                name = f"{split}_{c}{k}_aligned.jpg"
                save(tmp_path / f"DATASET/{split}/{c}/{name}", 10 * c)
                lines.append([name, c])
        save_csv(tmp_path / f"{split}_labels.csv", "image,label", lines)
    found, plan = read(tmp_path, tmp_path)
    assert len(found) == 56
    assert all(label == RAF[value // 10 - 1] for _, label, value in found.values())
    assert not ignored(plan)
    rows = (tmp_path / "train_labels.csv").read_text().replace("train_10_aligned.jpg,1", "{},2")
    (tmp_path / "train_labels.csv").write_text(rows.format("train_10_aligned.jpg"))
    found, plan = read(tmp_path, tmp_path)
    assert found["DATASET/train/1/train_10_aligned.jpg"][1] == RAF[1]
    assert any("1 pictures" in note and "the tables count" in note for note in plan.rows.notes)


# ---- FER2013 and FER+


def fer2013(path: Path, n: int = 70) -> Path:
    usage = [
        ("Training", "PublicTest", "PrivateTest")[i % 10 - 7 if i % 10 > 7 else 0] for i in range(n)
    ]
    lines = [[i % 7, " ".join([str(i)] * 48**2), usage[i]] for i in range(n)]
    return save_csv(path, "emotion,pixels,Usage", lines)


def ferplus(folder: Path, n: int = 70) -> Path:
    fer2013(folder / "fer2013.csv", n)
    head = "Usage,Image name," + ",".join(c.lower() for c in FERPLUS) + ",unknown,NF"
    lines = []
    for i in range(n):
        usage = ("Training", "PublicTest", "PrivateTest")[i % 10 - 7 if i % 10 > 7 else 0]
        votes = [6 * (k == i % 8) + 3 * (k == (i + 1) % 8) for k in range(8)]
        lines.append([usage, f"fer{i:07d}.png", *votes, 1, 0])
    lines[3][2:] = [0] * 9 + [10]  # not a face
    lines[4][2:] = [5, 5] + [0] * 8  # no majority
    lines[5][1] = ""  # left out by its authors
    save_csv(folder / "fer2013new.csv", head, lines)
    return folder


def test_ferplus_majority_beside_fer2013(tmp_path: Path) -> None:
    found, plan = read(tmp_path, ferplus(tmp_path / "f"), "ferplus")
    assert len(found) == 67
    assert all(label == FERPLUS[value % 8] for _, label, value in found.values())
    assert found["8"][0] == "val"
    assert dict(plan.rows.rejects) == {
        "3": "most votes: not a face",
        "4": "the votes agree on no class",
        "5": "most votes: not a face",
    }
    assert "targets" not in plan.rows.columns


def test_ferplus_distribution_gives_targets(tmp_path: Path) -> None:
    found, plan = read(tmp_path, ferplus(tmp_path / "f"), "ferplus", labels="distribution")
    assert "4" in found
    targets = plan.rows.columns["targets"]
    assert targets.shape == (68, 8)
    assert np.allclose(targets.sum(1), 1)
    row = plan.rows.source_id.index("0")
    assert np.allclose(targets[row][:2], [2 / 3, 1 / 3])  # the single vote for unknown is dropped


def test_ferplus_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = ferplus(tmp_path / "f")
    fer2013(folder / "fer2013.csv", 69)
    with pytest.raises(UserError, match="belong together row by row"):
        read(tmp_path, folder, "ferplus")
    fer2013(folder / "fer2013.csv", 71)
    with pytest.raises(UserError, match="belong together row by row"):
        read(tmp_path, folder, "ferplus")


def test_ferplus_as_folders_of_pngs(tmp_path: Path) -> None:
    root = tmp_path / "f"
    for part in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        lines = []
        for i in range(8):
            save(root / part / f"fer{i:07d}.png", 10 * i)
            votes = [10 * (k == i) for k in range(10)]
            lines.append([f"fer{i:07d}.png", "(0, 0, 48, 48)", *votes])
        with (root / part / "label.csv").open("w", newline="") as f:
            csv.writer(f).writerows(lines)
    found, plan = read(tmp_path, root)
    assert len(found) == 24
    assert found["FER2013Valid/fer0000002.png"] == ("val", "Surprise", 20)
    assert not ignored(plan)


def test_the_votes_rules_are_those_of_the_authors() -> None:
    assert decide([10, 0, 0, 0, 0, 0, 0, 0, 0, 0], False)[0] == "Neutral"
    assert decide([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], False)[0] == "unknown"
    assert decide([0] * 8 + [9, 0], False)[0] == "unknown"
    assert decide([0] * 9 + [9], False)[0] == "no face"
    assert decide([1] * 10, False)[0] == "unknown"
    assert decide([3, 1, 1, 1, 1, 0, 0, 0, 1, 0], False)[0] == "Neutral"  # single votes are dropped
    assert decide([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], True) == ("Neutral", [0.5, 0.5] + [0.0] * 6)
    assert decide([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], True)[0] == "unknown"  # more than three
    assert decide([4, 0, 0, 0, 0, 0, 0, 0, 6, 0], True)[0] == "unknown"
    assert decide([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], True)[0] == "Neutral"
    assert decide([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], True)[0] == "unknown"  # no more than half


# ---- tables


def test_the_generic_table_in_all_its_columns(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"p/{i}.png", i)
    lines = [
        [f"p/{i}.png", ("happy", "sad")[i % 2], ("train", "val", "test")[i % 3], *box, f"S{i // 3}"]
        for i in range(30)
        for box in ([0, 0, 50, 50], [50, 0, 100, 50])
    ]
    head = "path,label,split,x_min,y_min,x_max,y_max,group"
    found, plan = read(tmp_path, save_csv(tmp_path / "t.csv", head, lines))
    assert len(found) == 60  # two faces of every picture
    assert found["p/7.png"] == ("val", "Sadness", 7)
    assert found["p/7.png#2"] == ("val", "Sadness", 7)
    assert plan.rows.columns["group"].max() == 9
    assert plan.split_rule == "official"


def test_numbers_in_a_table_need_to_be_said_whose_they_are(tmp_path: Path) -> None:
    for i in range(14):
        save(tmp_path / f"{i}.png", i)
    table = save_csv(tmp_path / "t.csv", "path,label", [[f"{i}.png", i % 7 + 1] for i in range(14)])
    with pytest.raises(UserError, match="--classes NAME_OF_1,NAME_OF_2"):
        read(tmp_path, table)
    found, plan = read(tmp_path, table, classes="rafdb")
    assert all(label == RAF[value % 7] for _, label, value in found.values())
    assert plan.rows.class_map.source == "--classes rafdb"
    with pytest.raises(UserError, match="fer2013: its numbers are 0 to 6"):
        read(tmp_path, table, classes="fer2013")


def test_affectnets_pair_of_tables_is_one_set(tmp_path: Path) -> None:
    head = (
        "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
        "expression,valence,arousal"
    )
    points = ";".join(f"{20 + i % 10};{20 + i // 7}" for i in range(68))
    for name, n in (("training", 24), ("validation", 8)):
        lines = []
        for i in range(n):
            picture = f"{i % 3}/{name}{i}.jpg"
            save(tmp_path / "Manually_Annotated_Images" / picture, 10 * (i % 8))
            lines.append([picture, 0, 0, 9, 9, points, i % 8, 0.5, -0.5])
        save_csv(tmp_path / f"{name}.csv", head, lines)
    images = tmp_path / "Manually_Annotated_Images"
    save(images / "0/unlisted.jpg", 5)
    found, plan = read(tmp_path, tmp_path, image_root=images)
    assert {s: sum(f[0] == s for f in found.values()) for s in ("train", "val", "test")} == {
        "train": 19,
        "val": 5,
        "test": 8,
    }
    assert all(label == CLASSES[value // 10] for _, label, value in found.values())
    assert ignored(plan) == {"pictures without a row in the table": 1}
    table = tmp_path / "validation.csv"
    for name, other, own in (
        ("facial_landmarks", "points", "no column"),
        ("face_x", "person", "person"),
    ):
        kept = table.read_text()
        table.write_text(kept.replace(name, other, 1))
        with pytest.raises(UserError, match=f"validation.csv: {own} where .*training.csv has"):
            read(tmp_path, tmp_path, image_root=images)
        table.write_text(kept)


def test_expw_has_several_faces_a_picture(tmp_path: Path) -> None:
    lines = []
    for i in range(20):
        save(tmp_path / f"image/origin/{i}.jpg", 10 * (i % 7))
        for k in range(2):
            lines.append(f"{i}.jpg {k} 10 {10 + 40 * k} {40 + 40 * k} 60 45.5 {i % 7}\n")
    (tmp_path / "label").mkdir()
    (tmp_path / "label/label.lst").write_text("".join(lines))
    found, _ = read(tmp_path, tmp_path)
    assert len(found) == 40
    assert all(label == FER[value // 10] for _, label, value in found.values())
    config = PreprocessConfig("expw", tmp_path / "out", tmp_path)
    with open_source(source_spec("expw"), config) as source:
        face = source.face(source.rows().locators[1])
    assert face.box == (50, 10, 80, 60)  # left, top, right, bottom


def test_yolo_with_names_in_data_yaml(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for i in range(8):
            save(tmp_path / f"set/{split}/images/{i}.png", 10 * i)
            (tmp_path / f"set/{split}/labels").mkdir(exist_ok=True)
            (tmp_path / f"set/{split}/labels/{i}.txt").write_text(f"{i % 4} 0.5 0.5 0.4 0.6\n")
    names = "['Anger', 'Happy', 'Neutral', 'Sad']"
    (tmp_path / "set/data.yaml").write_text(f"train: ../train\nnc: 4\nnames: {names}\n")
    found, plan = read(tmp_path, tmp_path / "set")
    assert found["valid/images/1.png"] == ("val", "Happiness", 10)
    assert plan.rows.class_map.source == "data.yaml's names"
    (tmp_path / "set/data.yaml").write_text(
        "names:\n  0: anger\n  1: happy\n  2: neutral\n  3: sad\n"
    )
    assert read(tmp_path, tmp_path / "set")[0] == found
    (tmp_path / "set/data.yaml").unlink()
    with pytest.raises(UserError, match="--classes NAME_OF_0"):
        read(tmp_path, tmp_path / "set")


# ---- Hugging Face


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


# ---- names that are codes; archives; evaluation only


def test_jaffe_and_kdef_are_read_from_their_names(tmp_path: Path) -> None:
    codes = {"AN": "Anger", "FE": "Fear", "HA": "Happiness", "NE": "Neutral"}
    for p, person in enumerate(("KA", "KL", "KM", "KR", "MK")):
        for c, code in enumerate(codes):
            save(tmp_path / f"j/{person}.{code}1.{p * 4 + c}.tiff", 10 * c)
    found, plan = read(tmp_path, tmp_path / "j")
    assert all(label == list(codes.values())[value // 10] for _, label, value in found.values())
    assert "by person" in plan.split_rule
    for p in range(5):
        for c, code in enumerate(("AN", "AF", "HA", "NE")):
            save(tmp_path / f"k/AF{p:02d}/AF{p:02d}{code}S.JPG", 10 * c)
    found, plan = read(tmp_path, tmp_path / "k")
    assert all(label == list(codes.values())[value // 10] for _, label, value in found.values())
    assert len(np.unique(plan.rows.columns["group"])) == 5


def test_ck_plus_in_class_folders_keeps_subjects_apart(tmp_path: Path) -> None:
    for c in ("anger", "happy", "surprise"):
        for subject in range(8):
            for frame in range(3):
                save(tmp_path / f"c/{c}/S{10 + subject:03d}_001_{frame:08d}.png", frame)
    found, plan = read(tmp_path, tmp_path / "c")
    splits = {
        subject: {s for i, (s, _, _) in found.items() if subject in i} for subject in ("S012",)
    }
    assert len(splits["S012"]) == 1
    assert "persons (group) are those in CK+'s file names" in plan.rows.notes


def test_ck_plus_as_its_authors_give_it(tmp_path: Path) -> None:
    images, emotions = tmp_path / "c/cohn-kanade-images", tmp_path / "c/Emotion"
    for subject in range(6):
        folder = f"S{subject:03d}/001"
        for frame in range(1, 8):
            name = f"S{subject:03d}_001_{frame:08d}"
            save(images / folder / f"{name}.png", 10 * frame)
        (emotions / folder).mkdir(parents=True)
        if subject:  # S000 has a folder without a file
            name = f"{name}_emotion.txt"
            (emotions / folder / name).write_text(f"   {subject:.7e}\n")
    found, plan = read(tmp_path, tmp_path / "c")
    assert len(found) == 5 * 4
    names = ("Neutral", "Anger", "Contempt", "Disgust", "Fear", "Happiness")
    for source_id, (_, label, value) in found.items():
        subject = int(source_id.rpartition("/")[2][1:4])
        assert value in (10, 50, 60, 70)
        assert label == ("Neutral" if value == 10 else names[subject])
    assert "by person" in plan.split_rule
    assert len(np.unique(plan.rows.columns["group"])) == 5
    assert ignored(plan) == {
        "frames of sequences without an emotion": 7,
        "frames between the first and the peak": 5 * 3,
    }
    assert any("--crop detect" in note for note in plan.rows.notes)


def test_landmarks_of_ck_plus_cut_the_face(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for subject in range(3):
        name, folder = f"S{subject:03d}_001_00000001", f"S{subject:03d}/001"
        save(tmp_path / f"c/cohn-kanade-images/{folder}/{name}.png", 10)
        for kind in ("Emotion", "Landmarks"):
            (tmp_path / f"c/{kind}/{folder}").mkdir(parents=True)
        points = rng.uniform(4, 12, (68, 2))
        text = "\n".join(f"   {x:.7e}   {y:.7e}" for x, y in points)
        (tmp_path / f"c/Landmarks/{folder}/{name}_landmarks.txt").write_text(text)
        (tmp_path / f"c/Emotion/{folder}/{name}_emotion.txt").write_text("   9.0e+00\n")
    (tmp_path / f"c/Emotion/{folder}/{name}_emotion.txt").write_text("   7.0e+00\n")
    source = CkPlus(Tree(tmp_path / "c"))
    rows = source.rows()
    assert [reason for _, reason in rows.rejects] == ["emotion 9, wanted 0 to 7"] * 2
    face = source.face(rows.locators[0])
    assert face.landmarks is not None
    assert np.allclose(face.landmarks, points)


def test_frames_of_sequences_are_pointed_out(tmp_path: Path) -> None:
    for clip in range(5):
        for frame in range(6):
            save(tmp_path / f"c/{('happy', 'sad')[clip % 2]}/clip{clip}_{frame:03d}.png", frame)
    _, plan = read(tmp_path, tmp_path / "c")
    assert any("frames of 5 sequences" in note for note in plan.rows.notes)
    for i in range(30):
        save(tmp_path / f"d/{('happy', 'sad')[i % 2]}/{i}.png", i)
    assert not read(tmp_path, tmp_path / "d")[1].rows.notes


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


def test_a_tree_of_tests_only_is_for_evaluation(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"t/test/{('happy', 'sad')[i % 2]}/{i}.png", i)
    found, plan = read(tmp_path, tmp_path / "t")
    assert {s for s, _, _ in found.values()} == {"test"}
    for i in range(6):
        save(tmp_path / f"u/{('happy', 'sad')[i % 2]}/{i}.png", i)
    found, plan = read(tmp_path, tmp_path / "u", split="test")
    assert {s for s, _, _ in found.values()} == {"test"}
    assert plan.split_rule == "test: every face"


# ---- auto asks, and two label sources are named


def test_auto_asks_where_two_forms_fit(tmp_path: Path) -> None:
    lines = []
    for i in range(8):
        save(tmp_path / f"{('happy', 'sad')[i % 2]}/{i}.png", i)
        lines.append([f"{('happy', 'sad')[i % 2]}/{i}.png", ("happy", "sad")[(i > 5) ^ (i % 2)]])
    save_csv(tmp_path / "labels.csv", "pth,label", lines)
    with pytest.raises(UserError, match=r"fits several forms.*--source table.*--source folder"):
        read(tmp_path, tmp_path)
    _, plan = read(tmp_path, tmp_path, "folder", split="test")
    note = next(n for n in plan.rows.notes if "labels.csv" in n)
    assert "names another class for 2 of 8 pictures" in note
    found, _ = read(tmp_path, tmp_path, "table", split="test")
    assert found["happy/6.png"][1] == "Sadness"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no form that is read fits"):
        read(tmp_path, tmp_path / "empty")


def test_affectnet_with_a_test_set_uses_all_three(tmp_path: Path) -> None:
    for part, n in (("train_set", 16), ("val_set", 8), ("test_set", 8)):
        for i in range(n):
            save(tmp_path / f"{part}/images/{i}.jpg", 10 * (i % 8))
            (tmp_path / f"{part}/annotations").mkdir(exist_ok=True)
            np.save(tmp_path / f"{part}/annotations/{i}_exp.npy", np.array(str(i % 8)))
    found, plan = read(tmp_path, tmp_path)
    assert found["val_set/1"][0] == "val"
    assert found["test_set/1"][0] == "test"
    assert "train_set is train, val_set is val, test_set is test" in plan.rows.notes
    (tmp_path / "holdout_set").mkdir()
    with pytest.raises(UserError, match="holdout_set/ is no part of AffectNet"):
        read(tmp_path, tmp_path)
