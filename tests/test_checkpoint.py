from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_hpc.run import checkpoint
from fer_hpc.run.checkpoint import DamagedCheckpoint

STATE = {
    "images_seen": 7,
    "weights": torch.arange(50.0),
    "best": {"value": 0.5, "images_seen": 3, "name": "best"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "7.pt"
    checkpoint.save(path, STATE)
    return path


def test_what_is_saved_comes_back(saved: Path) -> None:
    back = checkpoint.load(saved)
    assert torch.equal(back["weights"], STATE["weights"])
    assert back["best"] == STATE["best"]


def test_torch_reads_the_file_as_it_is(saved: Path) -> None:
    assert torch.load(saved, weights_only=True)["images_seen"] == 7


def test_the_same_state_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "again.pt", STATE)
    assert (tmp_path / "again.pt").read_bytes() == saved.read_bytes()


def test_a_state_that_was_loaded_gives_the_same_bytes_again(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "again.pt", checkpoint.load(saved))
    assert (tmp_path / "again.pt").read_bytes() == saved.read_bytes()


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(saved: Path, place: float, bit: int) -> None:
    data = bytearray(saved.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    damaged = saved.with_name("flipped.pt")
    damaged.write_bytes(data)
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(damaged)


@pytest.mark.parametrize("keep", [0, 1, 65, 66, 500, -1])
def test_a_cut_off_file_is_noticed(saved: Path, keep: int) -> None:
    cut = saved.with_name("cut.pt")
    cut.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(cut)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_objects_in_a_checkpoint_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    checkpoint.save(path, {"state": Evil()})  # with a right checksum
    with pytest.raises(DamagedCheckpoint, match="refused"):
        checkpoint.load(path)
    assert "unpickled" not in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "1.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    with pytest.raises(
        AttributeError
    ):  # a local function cannot be pickled: the write breaks off in the middle
        checkpoint.save(path, {**STATE, "bad": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["1.pt"]
