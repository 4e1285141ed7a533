from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_hpc.data import loader
from fer_hpc.data.loader import EVAL_CHUNK, Images, TrainLoader, draws, eval_chunks, order
from fer_hpc.data.shards import Split, open_split, read_manifest

CPU = torch.device("cpu")


def split_of(n: int, shards: int = 1, size: int = 6, channels: int = 1) -> Split:
    """A split in memory: every pixel differs, the label is the row number."""
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    parts = np.array_split(images, shards)
    return Split("train", parts, np.cumsum([0, *(len(p) for p in parts)]), {"labels": np.arange(n)})


@settings(deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), start=st.integers(0, 200), count=st.integers(1, 90))
def test_order_is_the_concatenation_of_epoch_permutations(n: int, seed: int, start: int, count: int) -> None:
    epochs = np.concatenate([loader.permutation(n, seed, e) for e in range((start + count) // n + 1)])
    assert (order(n, seed, start, count) == epochs[start : start + count]).all()
    for epoch in np.split(epochs, len(epochs) // n):
        assert sorted(epoch) == list(range(n))


def test_order_is_pinned() -> None:
    """A change here makes every stored run continue with other samples."""
    assert order(10, 0, 0, 10).tolist() == [0, 8, 6, 9, 5, 2, 3, 1, 7, 4]
    assert draws(0, 5, 1)[0, :2].tolist() == pytest.approx([0.9294484627396323, 0.547953438155667], abs=0)


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 10**9), count=st.integers(1, 50), cut=st.integers(0, 50))
def test_draws_belong_to_positions_not_to_batches(seed: int, start: int, count: int, cut: int) -> None:
    cut = min(cut, count)
    parts = [draws(seed, start, cut), draws(seed, start + cut, count - cut)] if 0 < cut < count else [draws(seed, start, count)]
    assert (np.concatenate(parts) == draws(seed, start, count)).all()
    assert ((parts[0] >= 0) & (parts[0] < 1)).all()


def test_epochs_and_seeds_differ() -> None:
    assert (loader.permutation(100, 0, 0) != loader.permutation(100, 0, 1)).any()
    assert (loader.permutation(100, 0, 0) != loader.permutation(100, 1, 0)).any()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_slice_the_same_global_batch(size: int) -> None:
    one = TrainLoader(split_of(50), 12, seed=3, flip=True, device=CPU)
    ranks = [TrainLoader(split_of(50), 12, seed=3, flip=True, device=CPU, rank=r, size=size) for r in range(size)]
    for images_seen in (0, 12, 48, 120):  # 48: across the end of an epoch
        whole = one.batch(images_seen)
        parts = [loader.batch(images_seen) for loader in ranks]
        assert (whole.rows == np.concatenate([p.rows for p in parts])).all()
        assert torch.equal(whole.images, torch.cat([p.images for p in parts]))


def test_batch_is_what_a_plain_loop_would_make() -> None:
    split = split_of(40, shards=3, channels=3)
    made = TrainLoader(split, 16, seed=1, flip=True, device=CPU).batch(32)
    rows, flip = order(40, 1, 32, 16), draws(1, 32, 16)[:, loader.DRAW_FLIP] < 0.5
    assert 0 < flip.sum() < 16
    pixels = np.concatenate(split.images)
    for i, row in enumerate(rows):
        image = pixels[row][:, ::-1] if flip[i] else pixels[row]
        assert torch.equal(made.images[i], torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)) * (1 / 255))
        assert made.labels[i] == row
    assert made.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shards", [1, 4])
def test_number_of_shards_does_not_change_a_batch(shards: int) -> None:
    one, many = (TrainLoader(split_of(40, k), 16, seed=1, flip=True, device=CPU).batch(16) for k in (1, shards))
    assert torch.equal(one.images, many.images)


@pytest.mark.parametrize("n", [1, EVAL_CHUNK - 1, EVAL_CHUNK, 2 * EVAL_CHUNK + 7])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_evaluation_covers_every_row_once_in_full_chunks(n: int, size: int) -> None:
    images = Images(split_of(n, size=2), CPU)
    chunks = [(batch.labels.tolist(), real) for rank in range(size) for batch, real in eval_chunks(images, rank, size)]
    assert all(len(labels) == EVAL_CHUNK for labels, _ in chunks)
    assert sorted(row for labels, real in chunks for row in labels[:real]) == list(range(n))


def test_images_on_the_cpu_are_the_mapping_itself(shards: Path) -> None:
    split = open_split(read_manifest(shards), "train")
    images = Images(split, CPU)
    assert images.parts[0].data_ptr() == split.images[0].ctypes.data
    assert isinstance(split.images[0], np.memmap)
