"""The suite without a clone: a wheel has the scripts, and fer-hpc init writes them for a site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fer_hpc.cli.main import main
from fer_hpc.cluster import init, submit
from fer_hpc.cluster.submit import launch_script
from fer_hpc.config import UserError
from tests.helpers.wheel import environment

ROOT = Path(__file__).parents[1]
TRAIN = ("cnn_baseline", "--run", "run", "--dry-run", "--data", "shards")


def run(*command: object, cwd: Path, **env: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**environment(), **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def site(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the installed package wrote; its name needs quotes."""
    folder = tmp_path_factory.mktemp("home")
    done = run(installed / "fer-hpc", "init", "my site", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert ". 'my site/slurm/env.sh'" in done.stdout
    assert "sbatch 'my site/slurm/train_cnn.sh'" in done.stdout
    return folder / "my site"


def test_the_tests_do_not_use_the_checkout_as_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    show = "import fer_hpc, numpy; print(fer_hpc.__file__)"
    done = run(installed / "python", "-c", show, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent), done.stderr


def test_a_wheel_has_every_script_and_init_writes_it(site: Path, installed: Path) -> None:
    found = {p.relative_to(site).as_posix(): p for p in site.rglob("*.*") if p.is_file()}
    assert found.pop(init.RECORD)
    listed = [p for folder in init.FOLDERS for p in (ROOT / folder).glob("*.[ps][yh]")]
    assert len(listed) > 20
    assert sorted(found) == sorted(p.relative_to(ROOT).as_posix() for p in listed)
    python = f"    fer_python=({installed / 'python'})\n"
    for name, path in found.items():
        original = (ROOT / name).read_text()
        if name == "slurm/env.sh":
            assert init.PYTHON_LINE in original
            original = original.replace(init.PYTHON_LINE, python)
        assert path.read_text() == original, name
        assert os.access(path, os.X_OK) == os.access(ROOT / name, os.X_OK), name


def test_env_sh_of_a_site_names_the_site_and_the_interpreter(
    site: Path, installed: Path, tmp_path: Path
) -> None:
    show = '. "$0/slurm/env.sh"; echo "$FER_SITE|$FER_RUNS|${fer_python[*]}"'
    done = run("bash", "-c", show, site, cwd=tmp_path)
    assert done.stdout.strip() == f"{site}|{site}/runs|{installed / 'python'}"


def test_jobs_use_the_scripts_of_their_own_site(
    site: Path, installed: Path, tmp_path: Path
) -> None:
    done = run(installed / "python", site / "jobs" / "train.py", *TRAIN, cwd=tmp_path)
    assert f"'{site}/slurm/launch.sh' --job train" in done.stdout, done.stderr


def test_without_a_site_jobs_say_how_to_make_one(
    site: Path, installed: Path, tmp_path: Path
) -> None:
    mine = shutil.copy(site / "jobs" / "train.py", tmp_path / "mine.py")
    done = run(installed / "python", mine, *TRAIN, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: write it with fer-hpc init SITE" in done.stderr
    assert "Traceback" not in done.stderr


def test_jobs_find_their_site_from_anywhere(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script that runs, the sourced env.sh, the checkout, or the current folder."""
    for variable in ("FER_SITE", "FER_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    launch = site / "slurm" / "launch.sh"
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    assert launch_script() == ROOT / "slurm" / "launch.sh"
    monkeypatch.setattr(submit, "__file__", str(tmp_path / "fer_hpc/cluster/submit.py"))
    with pytest.raises(UserError, match="fer-hpc init SITE"):
        launch_script()
    monkeypatch.chdir(site)
    assert launch_script() == launch
    monkeypatch.chdir(site / "jobs")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("FER_SITE", str(tmp_path / "gone"))
    assert launch_script() == launch
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    with pytest.raises(UserError, match="gone"):
        launch_script()
    monkeypatch.setenv("FER_SITE", str(site))
    assert launch_script() == launch


# ---- an update, in this process ------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the package that a test can change, as an update of it does."""
    folder = tmp_path / "site_files"
    for name in init.FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    monkeypatch.setattr(init, "SITE_FILES", folder)
    return folder


def contents(folder: Path) -> dict[Path, str]:
    return {p: p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_an_update_replaces_no_edited_file(
    newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert main(["init", str(site)]) == 0
    first = contents(site)
    assert main(["init", str(site)]) == 0
    assert contents(site) == first, "a second run changes nothing"
    assert "unchanged" in capsys.readouterr().out

    env, launch = site / "slurm/env.sh", site / "slurm/launch.sh"
    env.write_text("# mine\n")
    with (newer / "slurm/launch.sh").open("a") as file:
        file.write("# newer\n")
    assert main(["init", str(site)]) == 0
    printed = capsys.readouterr().out
    assert "kept:     slurm/env.sh" in printed
    assert "updated:  slurm/launch.sh" in printed
    assert launch.read_text().endswith("# newer\n")
    assert not (site / "slurm/env.sh.new").exists(), "this version has no newer one"

    with (newer / "slurm/env.sh").open("a") as file:
        file.write("# newer\n")
    (newer / "jobs/gan.py").unlink()
    assert main(["init", str(site)]) == 0
    printed = capsys.readouterr().out
    assert "the new version is slurm/env.sh.new" in printed
    assert "unused:   jobs/gan.py" in printed
    assert env.read_text() == "# mine\n"
    beside = site / "slurm/env.sh.new"
    assert beside.read_text().endswith("# newer\n")
    beside.unlink()  # merged
    assert main(["init", str(site)]) == 0
    assert not beside.exists(), "offered once"


def test_an_edited_new_version_is_kept_too(
    newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    main(["init", str(site)])
    (site / "slurm/env.sh").write_text("# mine\n")
    (site / "slurm/env.sh.new").write_text("# half merged\n")
    (newer / "slurm/env.sh").write_text("# newer\n")
    before = contents(site)
    assert main(["init", str(site)]) == 2
    assert "slurm/env.sh.new was edited" in capsys.readouterr().err
    assert contents(site) == before


def test_files_that_init_did_not_write_are_kept(newer: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "jobs").mkdir(parents=True)
    (site / "jobs/train.py").write_text("# of another project\n")
    assert main(["init", str(site)]) == 0
    assert (site / "jobs/train.py").read_text() == "# of another project\n"
    assert (site / "jobs/train.py.new").read_text() == (ROOT / "jobs/train.py").read_text()


def test_the_checkout_is_no_site(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(ROOT / "slurm")
    assert main(["init", str(ROOT)]) == 2
    assert "is the checkout of this package" in capsys.readouterr().err
    assert contents(ROOT / "slurm") == before


def test_a_checkout_writes_a_site_as_well(tmp_path: Path) -> None:
    """An editable installation has links in the place of the files."""
    assert main(["init", str(tmp_path / "site")]) == 0
    written = tmp_path / "site" / "slurm" / "launch.sh"
    assert not written.is_symlink()
    assert written.read_bytes() == (ROOT / "slurm" / "launch.sh").read_bytes()
    assert sys.executable in (tmp_path / "site" / "slurm" / "env.sh").read_text()
