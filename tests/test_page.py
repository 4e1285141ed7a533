"""The page's tables, marks, contents and evidence, on known values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fer_hpc.evaluation import plots_many
from fer_hpc.report import figures
from fer_hpc.report.book import TableBook
from fer_hpc.report.extras import gaps_of, read_extras
from fer_hpc.report.report import with_contents
from tests.helpers.browser import chromium, set_screen

RESOURCES = Path(figures.__file__).parent

ROWS = """
<tr><th>run</th><th data-best="max">accuracy</th><th class="plot-cell">bar</th>
<th data-best="min">loss</th><th>note</th></tr>
<tr class="mean"><td>a_1</td><td>61.50 <span class="interval">[60.00, 63.00]</span></td>
<td class="plot-cell"><i></i></td><td>1.25</td><td>=1+1 | &lt;b&gt;</td></tr>
<tr class="member"><td>seed 0</td><td>99.00</td><td class="plot-cell"></td><td>0.1</td>
<td>–</td></tr>
<tr><td>b</td><td>58.00 <span class="interval">[57.00, 59.00]</span></td><td></td><td>1.00</td>
<td>50&amp;50 %</td></tr>
"""


def test_a_table_is_marked_and_written_in_three_forms(tmp_path: Path) -> None:
    shown = TableBook(tmp_path).show("val / x", "Results", caller=lambda: ROWS)
    assert shown.count("★") == 2, "the best of two columns; a member is not marked"
    assert shown.index("★") < shown.index("61.50")
    assert shown.count('<th scope="col"') == 5
    assert shown.count('<th scope="row"') == 3
    assert (tmp_path / "val-x.csv").read_text().splitlines() == [
        "run,accuracy,accuracy low,accuracy high,loss,note",
        "a_1,61.50,60.00,63.00,1.25,'=1+1 | <b>",
        "seed 0,99.00,,,0.1,",
        "b,58.00,57.00,59.00,1.00,50&50 %",
    ]
    lines = (tmp_path / "val-x.md").read_text().splitlines()
    assert lines[2:5] == [
        "| run | accuracy | loss | note |",
        "| --- | ---: | ---: | ---: |",
        "| a_1 | **61.50 [60.00, 63.00]** | 1.25 | =1+1 \\| &lt;b> |",
    ]
    latex = (tmp_path / "val-x.tex").read_text()
    assert r"b & 58.00 [57.00, 59.00] & \textbf{1.00} & 50\&50 \% \\" in latex
    assert r"\begin{tabular}{lrrr}" in latex
    for end in ("csv", "md", "tex"):
        assert f'href="tables/val-x.{end}"' in shown


def test_tables_of_the_same_name_keep_their_files(tmp_path: Path) -> None:
    book = TableBook(tmp_path)
    for _ in range(2):
        book.show("a b", "Twice", caller=lambda: ROWS)
    assert {path.stem for path in tmp_path.iterdir()} == {"a-b", "a-b-2"}


def test_equal_values_have_no_best(tmp_path: Path) -> None:
    rows = '<tr><th>a</th><th data-best="max">b</th></tr>' + "<tr><td>x</td><td>1</td></tr>" * 2
    assert "★" not in TableBook(tmp_path).show("equal", "Equal", caller=lambda: rows)


def test_the_contents_name_every_heading() -> None:
    page = with_contents(
        '<nav><!-- sections --></nav><!-- contents --><h2 id="a">One</h2>'
        '<h3 id="a1">First <span>x</span></h3><h2 id="b" class="warn">Two</h2><h3>no id</h3>'
    )
    assert '<nav><a href="#a">One</a>\n<a href="#b" class="warn">Two</a></nav>' in page
    assert '<ul><li><a href="#a">One</a><ul>\n<li><a href="#a1">First</a></li>' in page
    assert page.count("<ul>") == page.count("</ul>")


# ---- evidence ------------------------------------------------------------------------------------


def fake_run(path: Path, **scores: Any) -> Any:
    path.mkdir(parents=True, exist_ok=True)
    found = {name: {"weights": "w", "data": "ab"} for name in ("val",)} | scores
    return SimpleNamespace(path=path, label=path.name, scores=found, data_folder=path / "data")


def test_extras_of_other_weights_are_left_out_with_the_reason(tmp_path: Path) -> None:
    score = {"accuracy": 0.5, "accuracy_95": [0.4, 0.6], "ece": 0.1, "ece_95": [0.0, 0.2]}
    card = {
        "data": "ab",
        "weights": "w",
        "n": 10,
        "clean": score,
        "mean": {"accuracy": 0.4, "accuracy_95": [0.3, 0.5], "retained": 0.8},
        "disturbances": {"blur": {"title": "blur", "mean": 0.4}},
    }
    runs = [fake_run(tmp_path / name) for name in "abc"]
    (tmp_path / "a" / "robust-val.json").write_text(json.dumps(card))
    (tmp_path / "b" / "robust-val.json").write_text(json.dumps(card | {"weights": "older"}))
    (tmp_path / "c" / "robust-val.json").write_text("{")
    found = read_extras(runs, [])
    assert [extra.run.label for extra in found.robust] == ["a"]
    reasons = dict(found.damaged)
    assert "other weights" in reasons[tmp_path / "b" / "robust-val.json"]
    assert len(reasons) == 2


def test_an_audit_tells_leaks_from_other_findings(tmp_path: Path) -> None:
    counts = {"test images that are also in train": 3, "blank images": 2, "people in both": 0}
    findings = {what: {"count": n, "examples": []} for what, n in counts.items()}
    audit = {"fingerprint": "ab", "damage": [], "findings": findings}
    run = fake_run(tmp_path / "a")
    run.data_folder.mkdir()
    (run.data_folder / "doctor.json").write_text(json.dumps(audit))
    found = read_extras([run], []).audits["ab"]
    assert found.leaked == 3
    assert found.others == {"blank images": 2}


def test_gaps_begin_with_the_widest() -> None:
    def table(gap: float) -> dict[str, Any]:
        about = {"best": "a", "worst": "b", "gap_95": [0.0, 0.5], "verdict": "a gap"}
        return {"min_n": 30, "gap": {"accuracy": about | {"gap": gap}}}

    scores = {"groups": {"age": table(0.1), "source": table(0.3), "one": {"gap": None}}}
    assert [column for column, _ in gaps_of(scores)] == ["source", "age"]
    assert gaps_of({}) == []


# ---- pictures ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    found: list[Figure] = []
    monkeypatch.setattr(plots_many, "_save", lambda figure, _: found.append(figure))
    return found


def test_overlaid_curves_are_means_over_the_epochs_that_all_have(drawn: list[Figure]) -> None:
    def rows(*values: float) -> list[dict[str, Any]]:
        return [
            {"epoch": k + 1, "val_accuracy": v, "val_loss": 1 - v} for k, v in enumerate(values)
        ]

    groups = {"a": [rows(0.2, 0.4), rows(0.4, 0.6, 0.9)], "b": [rows(0.1)]}
    plots_many.overlaid_curves(groups, "x", Path("unused.svg"))
    accuracy, loss = drawn[0].axes
    assert np.asarray(accuracy.lines[0].get_ydata()).tolist() == pytest.approx([0.3, 0.5])
    assert np.asarray(loss.lines[0].get_ydata()).tolist() == pytest.approx([0.7, 0.5])
    assert accuracy.get_xlim()[1] > 2, "the last group is not the longest"
    looks = {(line.get_linestyle(), line.get_marker()) for line in accuracy.lines}
    assert len(looks) == 2, "distinguishable without colour"


def test_bars_of_a_gan_are_the_shares_of_each_expression(drawn: list[Figure]) -> None:
    of_class = {"n": 9, "accuracy": 0.25, "accuracy_95": [0.1, 0.5], "accuracy_of_real_faces": 0.75}
    expression = {"classes": {"Fear": of_class, "Anger": of_class | {"accuracy": 0.5}}}
    plots_many.gan_expressions(expression, "gan", Path("unused.svg"))
    bars = drawn[0].axes[0].patches
    heights = [patch.get_height() for patch in bars]  # type: ignore[attr-defined]
    assert heights == [0.25, 0.5, 0.75, 0.75]


def test_a_large_picture_is_linked_and_a_small_one_is_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MAX_EMBEDDED", 10)
    source = tmp_path / "run" / "gallery-val.png"
    source.parent.mkdir()
    source.write_bytes(b"x" * 10)
    assert figures.copied(source, "a/b c", tmp_path, "x").uri.startswith("data:image/png;base64,")
    source.write_bytes(b"x" * 11)
    large = figures.copied(source, "a/b c", tmp_path, "x")
    assert large.uri == large.file == "a/b%20c-gallery-val.png"
    assert (tmp_path / "a" / "b c-gallery-val.png").stat().st_size == 11


@pytest.mark.parametrize(
    ("name", "content", "wide"),
    [
        ("x.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\0\x40", True),
        ("x.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0", False),
        ("x.png", b"cut", False),
        ("x.svg", b'<svg width="3pt" viewBox="0 0 900.5 300">', True),
        ("x.svg", b"", False),
    ],
)
def test_a_wide_picture_takes_the_width(
    name: str, content: bytes, wide: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert figures.picture(tmp_path / name, tmp_path, "x").is_wide == wide


WIDE = f"""<!doctype html><meta name="viewport" content="width=device-width">
<style>{(RESOURCES / "style.css").read_text()}</style>
<main class="wrap"><div class="card"><div class="scroll"><table><tbody><tr>
{"<td>0.1234567</td>" * 20}</tr></tbody></table></div></div></main>"""


def test_a_table_that_is_cut_off_shows_it_at_the_edge(tmp_path: Path) -> None:
    (tmp_path / "wide.html").write_text(WIDE)
    with chromium() as page:
        set_screen(page, 390, 300)
        page.get(f"file://{tmp_path}/wide.html")

        def contrast() -> int:
            """Largest difference between the right edge of the table and the card around it."""
            box = page.execute_script(
                "const r = document.querySelector('.scroll').getBoundingClientRect();"
                "return [r.right, r.top, r.bottom]"
            )
            right, top, bottom = map(round, box)
            shown = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L")
            pixels = np.asarray(shown).astype(int)
            return int(
                abs(pixels[top + 3 : bottom - 8, right - 3] - pixels[top + 3, right + 6]).max()
            )

        def media(**values: str) -> None:
            features = [{"name": "prefers-color-scheme", "value": values.get("scheme", "light")}]
            emulated = {"media": values.get("media", "screen"), "features": features}
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)

        page.execute_script("document.querySelectorAll('td').forEach(c => c.style.color = '#0000')")
        for scheme in ("light", "dark"):
            media(scheme=scheme)
            page.execute_script("document.querySelector('.scroll').scrollLeft = 0")
            assert contrast() >= 15, scheme
            page.execute_script("document.querySelector('.scroll').scrollLeft = 1e6")
            assert contrast() <= 2, scheme
        media(media="print")
        style = "return getComputedStyle(document.querySelector('.scroll')).backgroundImage"
        assert page.execute_script(style) == "none"
