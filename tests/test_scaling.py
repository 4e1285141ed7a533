"""The model of step times over ranks, in known values, and what bench/scale.py makes of it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import scaling_model as model
import scaling_table
from scaling_model import Bucket, Card, Compute, Link


def test_a_ring_sends_what_theory_says() -> None:
    assert [model.ring_bytes(100.0, n) for n in (1, 2, 4)] == [0.0, 100.0, 150.0]


def test_an_all_reduce_costs_its_call_its_hops_and_its_bytes() -> None:
    link = Link(bytes_per_s=100.0, latency_s=0.5, call_s=0.25, trips=2)
    # 6 hops of 2 x .5 s, 1.5 x 200 bytes at 100 bytes/s
    assert model.ring_s(200.0, 4, link) == pytest.approx(0.25 + 6.0 + 3.0)
    assert model.ring_s(200.0, 1, link) == 0.0


def test_nodes_take_a_tree_where_a_ring_has_too_many_hops() -> None:
    inner, outer = Link(1e9, 0.0), Link(100.0, 1.0)
    assert model.nodes_s(10.0, 8, inner, outer) == pytest.approx(1.75 * 10 / 1e9)
    # 16 ranks: ring 30 hops, tree 2 hops and 2 x 10 bytes
    assert model.nodes_s(10.0, 16, inner, outer) == pytest.approx(2 + 0.2)
    assert model.nodes_s(1e9, 16, inner, outer) == pytest.approx(30 + 1.875e7)


def test_a_bucket_is_closed_by_the_gradient_that_fills_it() -> None:
    gradients = [(0.1, 4.0), (0.2, 8.0), (0.3, 3.0), (0.5, 30.0), (1.0, 2.0)]
    buckets = model.make_buckets(gradients, first=10, cap=20)
    assert buckets == [Bucket(0.2, 12.0), Bucket(0.5, 33.0), Bucket(1.0, 2.0)]


def test_the_exchange_runs_beside_the_backward_pass() -> None:
    compute = Compute(forward_s=1.0, backward_s=2.0, update_s=0.5)
    early_and_late = [Bucket(0.25, 1.0), Bucket(1.0, 1.0)]
    # hidden but for the last bucket; then the first delays the second
    assert model.step_s(compute, early_and_late, lambda _: 0.3) == pytest.approx(3.8)
    assert model.step_s(compute, early_and_late, lambda _: 4.0) == pytest.approx(1 + 8.5 + 0.5)
    assert model.step_s(compute, [], lambda _: 9.0) == pytest.approx(compute.total_s)


def test_the_host_limits_small_batches_without_a_graph() -> None:
    card = Card(host_s=6e-3, fixed_s=1e-3, image_s=1e-5)
    assert card.step_s(100, graph=False) == 6e-3
    assert card.step_s(100, graph=True) == pytest.approx(2e-3)
    assert card.images_at_host() == pytest.approx(500)
    assert card.step_s(1000, graph=False) == pytest.approx(11e-3)


def test_rates_give_back_the_step_that_they_came_from() -> None:
    rates = scaling_table.Rates(own=1000.0, no_graph=500.0, line=((100, 1250.0), (1000, 2000.0)))
    card = scaling_table.card(rates, 100)
    assert card.step_s(100, graph=True) == pytest.approx(0.1)
    assert card.step_s(100, graph=False) == pytest.approx(0.2)
    # the line's own ratio of 100 to 1,000 images
    assert card.step_s(1000, True) / card.step_s(100, True) == pytest.approx(0.5 / 0.08)


def test_scaling_ends_where_a_gpu_gives_less_than_four_fifths() -> None:
    assert scaling_table.reaches({1: 10.0, 2: 19.0, 4: 32.0, 8: 63.0, 16: 159.0}, 10.0) == 4
    assert scaling_table.reaches({1: 10.0, 2: 12.0}, 10.0) == 1


def test_the_table_has_every_gradient_of_a_preset() -> None:
    gradients = scaling_table.gradients("resnet_baseline")
    assert sum(size for _, size in gradients) == 175_400
    shares = [share for share, _ in gradients]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    row = scaling_table.preset_rows("resnet_baseline", 64)
    assert row["same_batch"]["without graph"][1] == pytest.approx(22_967)
    # the second GPU costs the graph: both together are slower than one
    assert row["same_batch"]["without graph"][2] < 22_967
    exchange = partial(model.nodes_s, ranks=2, inner=scaling_table.INNER, outer=Link(1.0, 1.0))
    assert exchange(175_400 * 4) < 1e-4
