"""Networks of the timm library: `--model timm:NAME`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fer_hpc.config import CLASSES, UserError
from fer_hpc.models.registry import build_network, check_network, model_spec
from fer_hpc.models.spec import Normalized, head_names
from fer_hpc.run import checkpoint
from fer_hpc.training.setup import with_synced_batch_norm
from fer_hpc.training.weights import init_from
from tests.conftest import Fer

timm = pytest.importorskip("timm")
SMALL = ("test_convnext", "test_resnet", "test_vit")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("side", "channels"), [(48, 1), (32, 3)])
def test_a_timm_network_takes_our_faces(name: str, side: int, channels: int) -> None:
    science = {"model": f"timm:{name}", "va_weight": 0.5}
    check_network(science, 7, (side, side, channels))
    model = build_network(science, 7, (side, side, channels))
    faces = torch.rand(2, channels, side, side)
    outputs = model(faces)
    assert outputs.shape == (2, 9)
    outputs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_norm_over_all_ranks_keeps_the_activations_of_its_layers() -> None:
    name = "timm:mobilenetv3_small_050"
    model = build_network({"model": name}, 7, (32, 32, 1)).eval()
    faces = torch.rand(2, 1, 32, 32)
    wanted = model(faces)
    synced = with_synced_batch_norm(model, name)
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in synced.modules())
    assert torch.allclose(synced(faces), wanted, atol=1e-5)


def test_the_spec_has_the_size_mean_and_std_of_the_published_weights() -> None:
    spec = model_spec("timm:resnet18.a1_in1k")
    assert spec.face == (224, 3)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)


def test_gray_faces_are_normalised_with_the_average_of_the_channels() -> None:
    gray = build_network({"model": "timm:resnet18"}, 8, (32, 32, 1))
    assert isinstance(gray, Normalized)
    assert gray.mean.flatten().tolist() == pytest.approx([0.449], abs=1e-6)
    assert gray.std.flatten().tolist() == pytest.approx([0.226], abs=1e-6)
    seen: list[torch.Tensor] = []
    gray.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    gray.eval()(torch.full((1, 1, 32, 32), 0.449))
    assert seen[0].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("timm:resnt18", 48, ("resnt18", "did you mean", "timm:resnet18")),
        ("timm:resnet18.mine", 48, ("mine", "timm:resnet18.a1_in1k")),
        ("timm:deit_tiny_distilled_patch16_224", 50, ("patches of 16", "--size 48")),
        ("timm:inception_v3", 48, ("48x48x1", "--size 299 --channels 3")),
    ],
)
def test_what_timm_cannot_do_is_one_message(name: str, side: int, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        check_network({"model": name}, 8, (side, side, 1))
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value)) < 600


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install fer-hpc\[timm\]"):
        model_spec("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_convnext", ["head.fc.weight", "head.fc.bias"]),
        ("test_resnet", ["fc.weight", "fc.bias"]),
        (
            "deit_tiny_distilled_patch16_224",
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
        ),
    ],
)
def test_the_head_is_what_timm_calls_classifier(name: str, heads: list[str]) -> None:
    model = build_network({"model": f"timm:{name}"}, 8, (32, 32, 1))
    assert head_names(model) == [f"network.{head}" for head in heads]


Write = Callable[[dict[str, torch.Tensor], Path], None]


def as_torch(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path.with_suffix(".pth"))


def as_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path.with_suffix(".safetensors"))


def as_training_script(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """With the prefix that DDP gives, and beside other things."""
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": named}, path.with_suffix(".pth"))


@pytest.mark.parametrize("write", [as_torch, as_safetensors, as_training_script])
@pytest.mark.parametrize("name", SMALL)
def test_a_plain_state_dict_starts_a_network_of_other_channels_size_and_classes(
    name: str, write: Write, tmp_path: Path
) -> None:
    """160 pixels, RGB, 1000 classes -> 48 pixels, gray, 8 classes; adapted as timm does it."""
    theirs = timm.create_model(name)
    write(theirs.state_dict(), tmp_path / "weights")
    (path,) = tmp_path.iterdir()
    model = build_network({"model": f"timm:{name}"}, 8, (48, 48, 1))
    head = {n: model.state_dict()[n].clone() for n in head_names(model)}
    note = init_from(model, path, CLASSES)
    assert "the last layer is new" in note
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in head.items())
    wanted = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": theirs.state_dict()},
        in_chans=1,
        num_classes=8,
        **({"img_size": 48} if name == "test_vit" else {}),
    ).state_dict()
    for n, tensor in wanted.items():
        if f"network.{n}" not in head:
            assert torch.equal(model.state_dict()[f"network.{n}"], tensor), n


def test_a_last_layer_of_the_same_shape_is_copied(tmp_path: Path) -> None:
    theirs = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = build_network({"model": "timm:test_resnet"}, 8, (48, 48, 1))
    init_from(model, tmp_path / "weights.pth", CLASSES)
    for n, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[f"network.{n}"], tensor), n


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]


def test_files_that_do_not_fit_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = timm.create_model("test_resnet").state_dict()
    less = {n: tensor for n, tensor in weights.items() if n != "layer1.0.conv1.weight"}
    torch.save(less, tmp_path / "less.pth")
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    for name, words in {
        "less.pth": "another network.*layer1.0.conv1.weight",
        "other.pth": "another network",
        "harmful.pth": "not a file of weights",
        "list.pth": "state dict",
        "numbers.pth": "state dict",
        "text.safetensors": "not a file of weights",
    }.items():
        model = build_network({"model": "timm:test_resnet"}, 8, (48, 48, 1))
        with pytest.raises(UserError, match=words) as error:
            init_from(model, tmp_path / name, CLASSES)
        assert name in str(error.value)
        assert len(str(error.value)) < 600
    assert not (tmp_path / "harmed").exists()


def test_a_plain_state_dict_starts_our_own_networks_too(tmp_path: Path) -> None:
    theirs = build_network({"model": "resnet_small"}, 5, (32, 32, 1))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = build_network({"model": "resnet_small"}, 8, (32, 32, 1))
    assert "the last layer is new" in init_from(model, tmp_path / "weights.pth", CLASSES)
    *body, weight, bias = theirs.state_dict()
    assert head_names(model) == [weight, bias]
    assert all(torch.equal(model.state_dict()[n], theirs.state_dict()[n]) for n in body)


def fill_cache(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The published weights of a network where the hub's client looks for a downloaded file."""
    torch.manual_seed(7)
    tensors: dict[str, torch.Tensor] = timm.create_model(name).state_dict()
    hub = timm.models.get_pretrained_cfg(name).hf_hub_id.partition("/")
    repository = folder / f"models--{hub[0]}--{hub[2]}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    as_safetensors(tensors, snapshot / "model")
    return tensors


FLAGS = ("--epochs", 1, "--batch-size", 30, "--threads", 1, "--no-tensorboard", "--device", "cpu")


def test_published_weights_come_from_the_cache_and_are_not_needed_again(
    fer: Fer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = fill_cache(tmp_path / "cache", "test_resnet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    command = ("cnn_baseline", "--model", "timm:test_resnet", "--data", shards, "--run", run)
    still = ("--lr", 0, "--lr-min", 0, "--freeze-bn")  # the weights stay as they begin
    done = fer("train", *command, *FLAGS, *still, "--pretrained")
    assert done.returncode == 0, done.stderr
    assert "published weights of timm:test_resnet" in done.stderr
    trained = checkpoint.load(run / "final.pt")["model"]
    assert torch.equal(trained["network.layer2.0.conv1.weight"], published["layer2.0.conv1.weight"])
    assert len(trained["network.fc.bias"]) == 8
    assert json.loads((run / "config.json").read_text())["science"]["pretrained"] is True

    shutil.rmtree(tmp_path / "cache")
    more = fer("train", *command, *FLAGS, *still, "--pretrained", "--epochs", 2)
    assert more.returncode == 0, more.stderr
    assert fer("evaluate", run, "--split", "test").returncode == 0
    without = fer("train", *command, *FLAGS, *still, "--epochs", 2)
    assert without.returncode == 2
    assert "--pretrained" in without.stderr


def test_without_network_and_cache_the_message_names_both_ways_out(
    fer: Fer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    for model, words in (
        ("timm:test_resnet", ("HF_HUB_OFFLINE", "--init-from", str(tmp_path / "cache"))),
        ("cnn_baseline", ("no published weights",)),
    ):
        command = ("cnn_baseline", "--model", model, "--data", shards, "--run", run)
        done = fer("train", *command, *FLAGS, "--pretrained")
        assert done.returncode == 2
        assert all(word in done.stderr for word in words), done.stderr
        assert "Traceback" not in done.stderr
        assert not (run / "config.json").exists()


@pytest.mark.long
def test_continued_it_ends_as_the_undisturbed_run_and_starts_other_runs(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    """Dropped paths are random: their numbers belong to the step, not to the start."""
    command = ("cnn_baseline", "--model", "timm:test_convnext", "--data", shards, *FLAGS)
    for run, epochs in (("whole", 2), ("parts", 1), ("parts", 2)):
        done = fer("train", *command, "--run", tmp_path / run, "--epochs", epochs)
        assert done.returncode == 0, done.stderr
    for name in ("final.pt", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()

    trained = checkpoint.load(tmp_path / "whole" / "best.pt")["model"]
    model = build_network({"model": "timm:test_convnext"}, 5, (32, 32, 1))
    assert "the last layer is new" in init_from(model, tmp_path / "whole" / "best.pt", CLASSES[:5])
    body = [name for name in model.state_dict() if name not in head_names(model)]
    assert all(torch.equal(model.state_dict()[name], trained[name]) for name in body)
