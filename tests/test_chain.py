"""The chain over a run's steps: what it notices, over ranks, starts and versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fer_hpc.parallel.world import World
from fer_hpc.run.chain import STOPS, Chain, chain_inputs, weights_digest

BATCH, EPOCH = 4, 90  # 22 or 23 steps an epoch
ROWS = np.random.default_rng(0).permutation(EPOCH * 4)


def run_chain(
    rows: NDArray[np.int64] = ROWS,
    losses: NDArray[np.int64] | None = None,
    ranks: int = 1,
    split_at: int = 0,
) -> list[dict[str, Any]]:
    """The rows of an imagined run of `ranks`, continued from a checkpoint after `split_at` steps.

    A step's sums are [images, loss] of the epoch so far.
    """
    steps = len(rows) // BATCH
    losses = np.arange(steps) ** 3 if losses is None else losses
    seen = BATCH * np.arange(steps)
    device, world = torch.device("cpu"), World()
    chains = [Chain(2, device) for _ in range(ranks)]
    sums = [torch.zeros(2, dtype=torch.int64) for _ in range(ranks)]
    mine = np.split(rows.reshape(steps, BATCH), ranks, 1)
    blocks = [chain_inputs([mine[k]], seen, BATCH, EPOCH, k) for k in range(ranks)]
    found = []
    for step in range(steps):
        if step and step == split_at:  # rank 0 goes on with what all had, the others with nothing
            saved = {n: sum(c.state_dict(world)[n] for c in chains) for n in ("values", "stops")}
            chains = [Chain(2, device) for _ in range(ranks)]
            for k, chain in enumerate(chains):
                chain.load_state_dict({**saved, "since": 0}, int(seen[step]), k)
            sums = [sum(sums[1:], sums[0])] + [torch.zeros_like(s) for s in sums[1:]]
        for k, chain in enumerate(chains):
            sums[k] = sums[k] + torch.tensor([BATCH // ranks, int(losses[step]) * (k == 0)])
            given = {n: torch.from_numpy(v[step : step + 1])[0] for n, v in blocks[k].items()}
            chain.add(given, sums[k])
        after = int(seen[step]) + BATCH
        if after // EPOCH > int(seen[step]) // EPOCH:
            whole = Chain(2, device)
            for name in ("values", "stops"):
                setattr(whole, name, sum(getattr(c, name) for c in chains))
            found.append(whole.row(world, after, BATCH, EPOCH, "w"))
            sums = [torch.zeros_like(s) for s in sums]
    return found


@pytest.mark.parametrize("changes", [{"ranks": 2}, {"split_at": 31}, {"ranks": 4, "split_at": 30}])
def test_ranks_and_starts_do_not_change_it(changes: dict[str, Any]) -> None:
    assert run_chain(**changes) == run_chain()


def test_a_difference_is_found_at_its_step_and_never_lost() -> None:
    swapped = ROWS.copy()
    swapped[[100, 101]] = swapped[[101, 100]]  # of step 25, the third of the second epoch
    losses = np.arange(len(ROWS) // BATCH) ** 3
    losses[30] += 1
    whole = run_chain()
    for other, place, at in ((run_chain(swapped), 1, 104), (run_chain(losses=losses), 2, 124)):
        assert other[0] == whole[0]
        pairs = list(zip(whole[1]["stops"], other[1]["stops"], strict=True))
        first = next(a[0] for a, b in pairs if a != b)
        assert first == at
        assert all(a[place] != b[place] for a, b in pairs if a[0] >= at)
        name = ("", "order", "sums")[place]
        assert all(other[k][name] != whole[k][name] for k in (1, 2))


def test_each_step_of_a_short_epoch_is_kept_and_32_of_a_long_one() -> None:
    stops = [[stop[0] for stop in row["stops"]] for row in run_chain()]
    assert stops[:2] == [list(range(4, 93, 4)), list(range(96, 181, 4))]
    seen = np.arange(0, 10_000, 2)
    stop = chain_inputs([np.zeros((5000, 2), np.int64)], seen, 2, 10_000, 0)["stop"]
    assert stop.shape == (5000, STOPS)
    assert np.array_equal(stop.sum(1), np.ones(5000))
    assert set(stop.sum(0)) == {156, 157}


def test_a_run_of_an_older_version_begins_its_chain_where_it_goes_on() -> None:
    chain = Chain(2, torch.device("cpu"))
    chain.load_state_dict(None, 120, 0)
    assert (chain.since, int(chain.values.abs().sum())) == (120, 0)
    with pytest.raises(ValueError, match="values of the chain"):
        chain.load_state_dict({"values": torch.zeros(3), "stops": chain.stops, "since": 0}, 0, 0)


def test_the_digest_sees_every_bit_of_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    digests = {weights_digest([network])}
    with torch.no_grad():
        network[0].bias.zero_()
        digests.add(weights_digest([network]))
        network[0].bias[1] = -0.0  # equal by value
        digests.add(weights_digest([network]))
        network[1].num_batches_tracked += 1
        digests.add(weights_digest([network]))
    assert len(digests) == 4
    assert all(len(digest) == 16 for digest in digests)
