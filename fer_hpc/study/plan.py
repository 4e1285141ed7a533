"""OUT/study.toml: the plan of a study, as it is written, read and checked."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config import (
    PRESETS,
    GanConfig,
    TrainConfig,
    UserError,
    preset,
    unknown_name_error,
)
from fer_hpc.config.commands import SweepConfig
from fer_hpc.config.gan import GAN_SIDES
from fer_hpc.config.presets import SIDES
from fer_hpc.files import write_bytes
from fer_hpc.study.recipes import Table, new_tables

NAME = "study.toml"
TOP = ("source", "input", "split", "classes", "count", "scale", "leave_out")
TABLES = ("models", "grid", "winner", "gan", "evaluate")
LEAVE_OUT = ("doctor", "grid", "winner", "gan", "val", "test", "models.NAME")
OWN_KEYS = {  # of a table, besides the fields of the command
    "models": ("preset", "data", "seeds"),
    "grid": ("preset", "data", "batch_sizes", "lrs", "seeds"),
    "winner": ("seeds",),
    "gan": ("data", "seeds"),
    "evaluate": ("robust", "gallery", "gan_pairs", "gan_judge"),
}
SET_BY_THE_STUDY = {"data", "run", "seed", "init_hash", "plugin_hash"}
PRODUCT = re.compile(r"(\d{1,4})x\1x([13])")  # height x width x channels


@dataclass(frozen=True)
class Plan:
    """A study: where it is, and the content of its study.toml."""

    out: Path
    tables: Table

    @property
    def models(self) -> Table:
        """Name -> table, without those that are left out."""
        return {
            name: table
            for name, table in self.tables["models"].items()
            if f"models.{name}" not in self.left_out
        }

    @property
    def left_out(self) -> set[str]:
        return set(self.tables["leave_out"])

    def has(self, name: str) -> bool:
        """Whether the study has a grid, a winner, a GAN, ..."""
        needs_grid = name == "winner" and "grid" in self.left_out
        return name not in self.left_out and not needs_grid

    @property
    def products(self) -> list[str]:
        """The faces that the parts need, each once: "48x48x1", ..."""
        products = [table["data"] for table in self.models.values()]
        products += [self.tables[name]["data"] for name in ("grid", "gan") if self.has(name)]
        return list(dict.fromkeys(products))

    def model_preset(self, name: str) -> str:
        return str(self.tables["models"][name].get("preset", name))


def shape_of(product: str) -> tuple[int, int]:
    """(side in pixels, channels) of "48x48x1"."""
    match = PRODUCT.fullmatch(product)
    if not match or not 8 <= int(match[1]) <= 1024:
        raise UserError(
            f"{NAME}: data = {product!r}: wanted HEIGHTxWIDTHxCHANNELS, as 48x48x1 or 224x224x3"
        )
    return int(match[1]), int(match[2])


# ---- writing -------------------------------------------------------------------------------------

HEAD = """\
# The plan of this study, written by its first start. `fer-hpc study {out}` runs it.
# Edit it before the parts concerned have run; the settings of a part are recorded when it starts,
# and a later change of them is refused. `fer-hpc study {out} --dry-run` shows what it costs.
"""
COMMENTS = {
    "count": "synthetic: number of faces",
    "scale": "of the recipes' epochs, which are written out below",
    "leave_out": 'any of "doctor", "grid", "winner", "gan", "val", "test", "models.NAME"',
    "models": "Every model is trained once a seed. Any field of `fer-hpc train` may be added, as\n"
    "# flip = true; another table, as [models.mine], needs preset = NAME.",
    "grid": "Every batch size x learning rate x seed; val chooses the winner.",
    "winner": "The configuration that the grid chose, trained with seeds that did not choose it.",
    "gan": "Any field of `fer-hpc train_gan` may be added.",
    "evaluate": "val is scored when a run has ended; test once, when everything is chosen.\n"
    "# robust, gallery: on test, too, a robustness card and galleries of every classifier.\n"
    '# gan_judge: the run whose classifier judges the GAN; "": one is trained for it.',
}


def to_text(tables: Table, out: Path) -> str:
    """The content of study.toml."""
    lines = [HEAD.format(out=out)]
    for key in TOP:
        comment = f"  # {COMMENTS[key]}" if key in COMMENTS else ""
        lines.append(f"{key} = {_value(tables[key])}{comment}")
    for name in TABLES:
        lines += ["", f"# {COMMENTS[name]}"]
        several = name == "models"
        listed = tables[name] if several else {"": tables[name]}
        for inner, table in listed.items():
            lines.append(f"[{name}.{inner}]" if several else f"[{name}]")
            lines += [f"{key} = {_value(value)}" for key, value in table.items()]
            lines += [""] if several else []
        if lines[-1] == "":
            lines.pop()
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value as TOML; its texts are written as JSON writes them, which TOML reads."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


# ---- reading -------------------------------------------------------------------------------------


def write_plan(plan: Plan) -> None:
    """Write OUT/study.toml."""
    plan.out.mkdir(parents=True, exist_ok=True)
    write_bytes(plan.out / NAME, to_text(plan.tables, plan.out).encode())


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return (folder / NAME).is_file()


def read_plan(out: Path) -> Plan:
    """The plan in OUT/study.toml; a UserError that names the key where it cannot be used."""
    path = out / NAME
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{out} holds no study; the first call needs --source (and --input)"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    plan = Plan(out.absolute(), tables)
    check_plan(plan)
    return plan


def check_plan(plan: Plan) -> None:
    """A UserError for an unknown key or a value that a command would refuse."""
    tables = plan.tables
    _check_keys(tables, (*TOP, *TABLES), f"key in {NAME}")
    usual = {key: (list if key == "leave_out" else str) for key in TOP} | {"count": int}
    for key, kind in usual.items():
        if type(tables.get(key)) is not kind:
            name = {str: "text", int: "a whole number", list: "a list"}[kind]
            raise UserError(f"{NAME}: {key} = {tables.get(key)!r}: wanted {name}")
    for name in TABLES:
        if not isinstance(tables.get(name), dict):
            raise UserError(f"{NAME} has no table [{name}]; to leave it out, name it in leave_out")
    known = [*LEAVE_OUT[:-1], *(f"models.{name}" for name in tables["models"])]
    for name in tables["leave_out"]:
        if name not in known:
            raise unknown_name_error(f"part in {NAME}, leave_out", str(name), known)
    for name, table in tables["models"].items():
        where = f"[models.{name}]"
        if not isinstance(table, dict):
            raise UserError(f"{NAME}: models.{name}: wanted a table {where}")
        if not re.fullmatch(r"\w[\w.-]{0,60}", name):
            raise UserError(f"{NAME}: {where}: wanted a name of letters, digits, - and _")
        if plan.model_preset(name) not in PRESETS:
            raise unknown_name_error(
                f"preset in {NAME}, {where}", plan.model_preset(name), list(PRESETS)
            )
        _check_table(where, "models", table, TrainConfig)
        _check_side(where, table, plan.model_preset(name))
    _check_table("[grid]", "grid", tables["grid"], TrainConfig)
    _check_side("[grid]", tables["grid"], tables["grid"].get("preset", "cnn_improved"))
    _check_table("[gan]", "gan", tables["gan"], GanConfig)
    if shape_of(tables["gan"]["data"])[0] not in GAN_SIDES:
        raise UserError(
            f"{NAME}, [gan]: data = {tables['gan']['data']!r}: the GAN takes faces of "
            f"{', '.join(map(str, GAN_SIDES))} pixels"
        )
    for name in ("winner", "evaluate"):
        _check_keys(tables[name], OWN_KEYS[name], f"key in {NAME}, [{name}]")
    _check_seeds("[winner]", tables["winner"])
    judge = tables["evaluate"].get("gan_judge", "")
    runs = [f"{name}-seed{seed}" for name, t in plan.models.items() for seed in t["seeds"]]
    if plan.has("gan") and judge and judge not in runs:
        error = unknown_name_error(f"run in {NAME}, [evaluate], gan_judge", str(judge), runs)
        raise UserError(f'{error}; "" trains a judge for the GAN')
    _check_values(plan)


def _check_table(where: str, name: str, table: Table, config_class: type) -> None:
    own = OWN_KEYS[name]
    fields = [f.name for f in dataclasses.fields(config_class) if f.name not in SET_BY_THE_STUDY]
    swept = ("batch_size", "lr") if name == "grid" else ()
    _check_keys(table, (*own, *(f for f in fields if f not in swept)), f"key in {NAME}, {where}")
    for key in own:
        if key not in table and key != "preset":
            raise UserError(f"{NAME}, {where}: {key} is missing")
    shape_of(str(table["data"]))
    _check_seeds(where, table)


def _check_side(where: str, table: Table, preset_name: str) -> None:
    """A UserError for faces of a size that a built-in network does not take."""
    model = table.get("model") or PRESETS.get(preset_name, {}).get("model")
    smallest, largest = SIDES.get(str(model), (0, 1024))
    if not smallest <= shape_of(str(table["data"]))[0] <= largest:
        raise UserError(
            f"{NAME}, {where}: data = {table['data']!r}: {model} takes {smallest} to {largest} "
            "pixels"
        )


def _check_keys(table: Table, known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in known:
            raise unknown_name_error(what, key, list(known))


def _check_seeds(where: str, table: Table) -> None:
    seeds = table.get("seeds")
    whole = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{NAME}, {where}: seeds = {seeds!r}: wanted whole numbers, each once, as [0, 1, 2]"
        )


def _check_values(plan: Plan) -> None:
    """Build every configuration, so that its own checks speak before anything runs."""
    tables = plan.tables
    places: Table = {"data": Path("data"), "run": Path("run")}
    where = ""
    try:
        for name, table in tables["models"].items():
            where = f"[models.{name}]"
            preset(plan.model_preset(name), **fields_of_table("models", table), **places)
        where, grid = "[grid]", tables["grid"]
        preset(grid.get("preset", "cnn_improved"), **fields_of_table("grid", grid), **places)
        lists: Table = {key: tuple(grid[key]) for key in ("batch_sizes", "lrs", "seeds")}
        SweepConfig(data=places["data"], out=places["run"], **lists)
        if not grid.get("threads", 1):
            raise UserError("threads = 0: the trials share the cores; give a number")
        where = "[gan]"
        GanConfig(**fields_of_table("gan", tables["gan"]), **places)
    except (UserError, TypeError) as error:
        raise UserError(f"{NAME}, {where}: {error}") from None


def fields_of_table(name: str, table: Table) -> Table:
    """The fields of the command itself in a table."""
    return {k: v for k, v in table.items() if k not in OWN_KEYS[name]}


def new_plan(config: Any, job: Any) -> Plan:
    """The plan of a first call."""
    plan = Plan(config.out.absolute(), new_tables(config, job))
    check_plan(plan)
    return plan
