"""Shuffled, flipped, normalised batches of 256: ours and other loaders, in one run.

    python bench/loader.py [--size 48 --channels 1 --count 20000]
    python bench/loader.py --size 224 --channels 3 --count 2000

Every loader gets the same pictures in the form that suits it best, two worker processes where it
has workers, one unmeasured pass (page cache, processes, caches) and then `--seconds` of measured
passes, in two interleaved rounds; the better round counts.
Peers that are not installed are left out (pip install -e '.[bench]').
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

from fer_hpc.data.augment import Augmentation
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import open_split, read_manifest, write_manifest, write_shard
from fer_hpc.data.step_inputs import Block, BlocksAhead
from fer_hpc.data.store import ImageStore
from fer_hpc.data.stream import PixelStream

BATCH, WORKERS = 256, 2
Passes = Callable[[], Iterator[int]]  # a fresh pass over the data, giving batch sizes


def make_shards(folder: Path, pixels: np.ndarray) -> None:
    """The pictures as one of our shards, with labels and otherwise empty columns."""
    n = len(pixels)
    columns = {
        "images": pixels,
        "labels": np.arange(n) % 8,
        "valence": np.full(n, np.nan, np.float32),
        "arousal": np.full(n, np.nan, np.float32),
        "landmarks": np.full((n, 68, 2), np.nan, np.float32),
        "group": np.full(n, -1),
        "synthetic": np.ones(n, np.uint8),
        "image_hash": np.full(n, b"", "S32"),
        "source_id": np.array([str(i) for i in range(n)], dtype=object),
    }
    entry = write_shard(folder / "train-00000.h5", columns, {})
    classes = [f"class {k}" for k in range(8)]
    counts = dict(zip(classes, np.bincount(columns["labels"], minlength=8).tolist(), strict=True))
    split = {"n": n, "class_counts": counts, "shards": [entry]}
    shape = list(pixels.shape[1:])
    write_manifest(
        folder,
        {"format": 1, "image_shape": shape, "classes": classes, "splits": {"train": split}},
    )


def ours(folder: Path) -> Passes:
    split = open_split(read_manifest(folder), "train")
    device = torch.device("cpu")
    loader = TrainLoader(split, BATCH, 0, Augmentation(flip=True), device)
    blocks = BlocksAhead(lambda *a: Block(loader.block(*a)), device, 0, BATCH, 10**12)
    seen, pixels = [0], PixelStream(loader.images)

    def run() -> Iterator[int]:
        for _ in range(len(split) // BATCH):
            block, k = blocks.at(seen[0])
            batch = loader.make(block.inputs(k) | pixels.at(block, k))
            seen[0] += len(batch.labels)
            yield len(batch.labels)

    return run


def bare_loop(pixels: np.ndarray) -> Passes:
    """index_select, flip, normalise on a tensor in memory: the bound for the whole task."""
    data = torch.from_numpy(pixels)
    shape = (BATCH, *data.shape[1:])
    pixel_batch = torch.empty(shape, dtype=torch.uint8)
    floats = torch.empty(shape, dtype=torch.float32)

    def run() -> Iterator[int]:
        for rows in torch.randperm(len(data)).split(BATCH)[:-1]:
            torch.index_select(data, 0, rows, out=pixel_batch)
            flip = (torch.rand(BATCH) < 0.5).nonzero()[:, 0]
            pixel_batch[flip] = pixel_batch[flip].flip(2)
            floats.copy_(pixel_batch).mul_(1 / 255)
            yield BATCH

    return run


def of_loader(loader: object) -> Passes:
    def run() -> Iterator[int]:
        for images, *_ in loader:  # type: ignore[attr-defined]
            assert images.dtype == torch.float32
            yield len(images)

    return run


def torch_loader(data: object, shuffle: bool = True) -> Passes:
    """`data` in torch's DataLoader, with workers that live for all passes."""
    return of_loader(
        torch.utils.data.DataLoader(
            data,  # type: ignore[arg-type]
            BATCH,
            shuffle=shuffle,
            num_workers=WORKERS,
            drop_last=True,
            persistent_workers=True,
        )
    )


def to_float(image: np.ndarray) -> torch.Tensor:
    """What the per-sample peers do in their workers: flip at random, normalise, channels first."""
    if np.random.random() < 0.5:
        image = image[:, ::-1]
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)).div_(255)


def image_folder(folder: Path, pixels: np.ndarray) -> Passes:
    from torchvision import datasets, transforms

    channels = pixels.shape[3]
    for i, picture in enumerate(pixels):
        path = folder / str(i % 8) / f"{i}.{'png' if channels == 1 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.squeeze()).save(path, quality=90)
    gray = [transforms.Grayscale()] if channels == 1 else []
    chain = transforms.Compose([*gray, transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    return torch_loader(datasets.ImageFolder(str(folder), chain))


def webdataset(folder: Path, pixels: np.ndarray) -> Passes:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=len(pixels) // 8, verbose=0) as sink:
        for i, picture in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(picture.squeeze()).save(
                buffer, "PNG" if pixels.shape[3] == 1 else "JPEG", quality=90
            )
            sink.write({"__key__": f"{i:08d}", "img": buffer.getvalue(), "cls": i % 8})

    def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
        image = np.asarray(Image.open(io.BytesIO(sample["img"])))
        return to_float(image.reshape(image.shape[0], image.shape[1], -1)), int(sample["cls"])

    shards = [str(p) for p in sorted(folder.glob("*.tar"))]
    data = (
        wds.WebDataset(shards, shardshuffle=8, empty_check=False)
        .shuffle(1000)
        .map(decode)
        .batched(BATCH, partial=False)
    )
    return of_loader(
        wds.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    )


def litdata(folder: Path, pixels: np.ndarray) -> Passes:
    os.environ.update(
        DATA_OPTIMIZER_CACHE_FOLDER=str(folder / "c"),
        DATA_OPTIMIZER_DATA_CACHE_FOLDER=str(folder / "d"),
    )
    import litdata as ld
    from litdata.streaming.writer import BinaryWriter

    out = folder / "optimized"
    out.mkdir()
    writer = BinaryWriter(str(out), chunk_bytes="64MB")
    for i, picture in enumerate(pixels):
        writer[i] = {"image": picture, "label": i % 8}
    writer.done()
    writer.merge()

    class Data(ld.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(index)
            return to_float(np.asarray(sample["image"])), sample["label"]

    data = Data(str(out), shuffle=True, drop_last=True)
    return of_loader(
        ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    )


def mosaic(folder: Path, pixels: np.ndarray) -> Passes:
    from streaming import MDSWriter, StreamingDataset

    shape = ",".join(map(str, pixels.shape[1:]))
    with MDSWriter(
        out=str(folder / "mds"), columns={"image": f"ndarray:uint8:{shape}", "label": "int"}
    ) as writer:
        for i, picture in enumerate(pixels):
            writer.write({"image": picture, "label": i % 8})

    class Data(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(index)
            return to_float(sample["image"]), sample["label"]

    data = Data(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return torch_loader(data, shuffle=False)  # it shuffles by itself


class H5Samples(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One h5py read a sample, the file opened in each worker (never before a fork)."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n, self.file = path, n, None

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.file = self.file or h5py.File(self.path)
        return to_float(self.file["images"][index]), int(self.file["labels"][index])


def h5py_per_sample(folder: Path) -> Passes:
    split = read_manifest(folder)
    return torch_loader(H5Samples(folder / "train-00000.h5", split.n("train")))


class InMemory(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_float(self.pixels[index]), index % 8


def tf_data(pixels: np.ndarray) -> Passes:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    labels = np.arange(len(pixels)) % 8

    def prepare(images: object, labels: object) -> tuple[object, object]:
        return tf.image.random_flip_left_right(tf.cast(images, tf.float32) / 255.0), labels

    data = (
        tf.data.Dataset.from_tensor_slices((pixels, labels))
        .shuffle(len(pixels))
        .batch(BATCH, drop_remainder=True)
    )
    data = data.map(prepare, num_parallel_calls=WORKERS).prefetch(2)

    def run() -> Iterator[int]:
        for images, _ in data:
            yield int(images.shape[0])

    return run


def rate(passes: Passes, seconds: float) -> float:
    """Images/s over whole passes of at least `seconds` in all."""
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += sum(passes())
    return images / (time.perf_counter() - began)


def memcpy_rate(pixels: np.ndarray, images: ImageStore, seconds: float) -> tuple[float, float]:
    """Images/s of a shuffled select from the mapping, and of a plain copy of as many bytes.

    Timed in turn, batch by batch: the bandwidth that other programs leave changes by the second.
    """
    source = torch.from_numpy(pixels)
    target, delivered = torch.empty((2, BATCH, *pixels.shape[1:]), dtype=torch.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    spent, batches, until = [0.0, 0.0], 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for first in range(0, len(pixels) - BATCH, BATCH):
            began = time.perf_counter()
            images.read_pixels(order[first : first + BATCH], delivered)
            between = time.perf_counter()
            target.copy_(source[first : first + BATCH])
            spent = [spent[0] + between - began, spent[1] + time.perf_counter() - between]
            batches += 1
    return batches * BATCH / spent[0], batches * BATCH / spent[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--count", type=int, default=20_480)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    # blocks of equal pixels: they compress about as faces do
    small, side = rng.integers(0, 256, (args.count, 12, 12, args.channels), np.uint8), args.size
    pixels = small.repeat(side // 12 + 1, 1).repeat(side // 12 + 1, 2)[:, :side, :side].copy()
    with tempfile.TemporaryDirectory() as root_name:
        root = Path(root_name)
        make_shards(root, pixels)
        for name in ("folder", "wds", "lit", "mosaic"):
            (root / name).mkdir()
        candidates: dict[str, Callable[[], Passes]] = {
            "ours": lambda: ours(root),
            "bare loop in memory": lambda: bare_loop(pixels),
            "ImageFolder": lambda: image_folder(root / "folder", pixels),
            "WebDataset": lambda: webdataset(root / "wds", pixels),
            "LitData": lambda: litdata(root / "lit", pixels),
            "MosaicML streaming": lambda: mosaic(root / "mosaic", pixels),
            "h5py per sample": lambda: h5py_per_sample(root),
            "array in DataLoader": lambda: torch_loader(InMemory(pixels)),
            "tf.data in RAM": lambda: tf_data(pixels),
        }
        ready: dict[str, Passes] = {}
        for name, make in candidates.items():
            try:
                ready[name] = make()
                sum(ready[name]())  # the unmeasured pass
            except ImportError as missing:
                print(f"{name}: left out ({missing})", file=sys.stderr)
        rates = dict.fromkeys(ready, 0.0)
        for _ in range(2):
            for name, passes in ready.items():
                rates[name] = max(rates[name], rate(passes, args.seconds))
        store = ImageStore(open_split(read_manifest(root), "train"), torch.device("cpu"))
        delivered, copied = memcpy_rate(pixels, store, args.seconds)
    print(
        f"{args.size}x{args.size}x{args.channels}, batches of {BATCH}, "
        f"{torch.get_num_threads()} cores, float32 images/s"
    )
    for name, value in rates.items():
        print(f"  {name:<22}{value:>12,.0f}   ours is {rates['ours'] / value:6.2f} times that")
    share = f"{delivered / copied:.2f} of memcpy ({copied:,.0f})"
    print(f"  uint8 delivery        {delivered:>12,.0f}   {share}")


if __name__ == "__main__":
    main()
