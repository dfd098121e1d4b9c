"""OptEmbed's supernet against plain numpy, its search, and the bytes it ends in."""

import math

import numpy as np
import pytest
import torch
from tables_samples import make_batch, make_specs

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.tables.base import total_full_bytes
from recemb.tables.optembed import OptEmbedConfig


def surrogate(x: np.ndarray) -> np.ndarray:
    return np.select([np.abs(x) <= 0.4, np.abs(x) <= 1.0], [2 - 4 * np.abs(x), 0.4 * np.ones_like(x)], 0.0)


def make(config: OptEmbedConfig, sizes: dict[str, int], dim: int, init_std: float = 0.15):
    specs = [
        TableSpec(name=name, num_embeddings=size, embedding_dim=dim, max_length=1, init_std=init_std)
        for name, size in sizes.items()
    ]
    supernet = config.pruning_table(specs)
    return specs, supernet, CompressedEmbeddingBagCollection(specs, supernet)


@pytest.mark.parametrize("per", ["feature", "row"])
def test_the_supernet_and_its_gradients_are_the_paper_s(per: str):
    """Row mask by L1 norm over threshold, its gradient by the surrogate, first widths; id 0 is never masked."""
    _, supernet, tables = make(OptEmbedConfig(per=per), {"a": 40, "b": 30}, 6)
    supernet.eval()
    supernet.widths.copy_(torch.tensor([4, 2]))
    thresholds = supernet.thresholds
    thresholds.data.copy_(torch.linspace(0.5, 0.9, len(thresholds)))
    ids = torch.stack([torch.arange(30) + 10, torch.arange(30)])
    spec = torch.tensor([[0], [1]])
    vectors = torch.stack([tables.weights[0].detach()[ids[0]], tables.weights[1].detach()[ids[1]]]).requires_grad_()
    towards = torch.randn(2, 30, 6)
    out = supernet.gate(vectors, ids, spec)
    supernet.level.fill_(0.0)
    out = supernet.gate(vectors, ids, spec)
    (out * towards).sum().backward()

    e, g = vectors.detach().numpy(), towards.numpy()
    t = thresholds.detach().numpy()
    t = t[:, None] if per == "feature" else np.stack([t[ids[0]], t[40 + ids[1]]])
    first = np.arange(6)[None, None, :] < np.array([4, 2])[:, None, None]
    x = np.abs(e).sum(axis=2) - t
    kept = (x > 0) | (ids.numpy() == 0)
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(out.detach().numpy(), e * first * kept[:, :, None], atol=1e-6)
    of_x = (g * first * e).sum(axis=2) * surrogate(x) * (ids.numpy() != 0)
    np.testing.assert_allclose(
        vectors.grad.numpy(), g * first * kept[:, :, None] + of_x[:, :, None] * np.sign(e), atol=1e-5
    )
    if per == "feature":
        np.testing.assert_allclose(thresholds.grad.numpy(), -of_x.sum(axis=1), atol=1e-4)
    else:
        wanted = np.zeros(70)
        np.add.at(wanted, ids[0].numpy(), -of_x[0])
        np.add.at(wanted, 40 + ids[1].numpy(), -of_x[1])
        np.testing.assert_allclose(thresholds.grad.numpy(), wanted, atol=1e-4)


def test_the_penalty_pushes_thresholds_up():
    _, supernet, _ = make(OptEmbedConfig(alpha=0.5, threshold_lr=0.1), {"a": 4, "b": 3}, 4)
    supernet.thresholds.data.copy_(torch.tensor([0.0, 1.0]))
    penalty = supernet.penalty()
    assert penalty.item() == pytest.approx(0.5 * (1 + math.exp(-1)))
    penalty.backward()
    (sgd,) = supernet.optimizers()
    sgd.step()
    np.testing.assert_allclose(supernet.thresholds.detach(), [0.05, 1 + 0.05 * math.exp(-1)], atol=1e-6)


def test_widths_are_uniform_in_training_and_given_in_evaluation():
    _, supernet, tables = make(OptEmbedConfig(), {"a": 50, "b": 50}, 8)
    ids = torch.arange(50).repeat(2, 400)
    vectors = torch.ones(2, 20_000, 8)
    spec = torch.tensor([[0], [1]])
    drawn = supernet.gate(vectors, ids, spec)
    widths = drawn.sum(dim=2)
    assert torch.equal(drawn, (torch.arange(8) < widths.unsqueeze(2)).float())
    counts = torch.bincount(widths.flatten().long(), minlength=9)
    assert counts[0] == 0
    assert (counts[1:] / 40_000 - 1 / 8).abs().max() < 0.01
    supernet.eval()
    assert torch.equal(supernet.gate(vectors, ids, spec), vectors)  # full width with the row mask, as in the paper
    del tables


def test_bags_are_masked_id_by_id():
    specs = make_specs()
    supernet = OptEmbedConfig(traffic=0).pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, supernet)
    tables.eval()
    norms = torch.cat([weight.abs().sum(dim=1) for weight in tables.weights])
    supernet.level.fill_(float(norms.detach().median()))
    supernet.widths.copy_(torch.tensor([3, 16, 5, 8]))
    batch = make_batch(specs, bags=30)
    for index, spec in enumerate(specs):
        masked = tables.weights[index].detach().clone()
        small = masked.abs().sum(dim=1) <= float(supernet.level)
        small[0] = False
        masked[small] = 0
        masked[:, int(supernet.widths[index]) :] = 0
        jagged = batch[spec.name]
        wanted = torch.stack([masked[bag].sum(dim=0) for bag in jagged.to_dense()])
        torch.testing.assert_close(tables(batch)[spec.name], wanted, atol=1e-6, rtol=0)


def test_the_search_spends_the_budget_on_every_candidate_and_returns_the_best():
    specs = make_specs()
    budget = total_full_bytes(specs) // 8
    config = OptEmbedConfig(rounds=6).fit(specs, budget)
    supernet = config.pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, supernet)
    heard: dict[tuple[int, ...], float] = {}

    def auc() -> float:  # of wide tables of few rows, and narrow ones of many: best where "item" has 7 floats
        used = supernet.solver(tables.weights).structure(float(supernet.level), supernet.widths.tolist())
        assert used.layout(specs).serving_bytes <= budget
        return -abs(int(supernet.widths[2]) - 7) - abs(int(supernet.widths[1]) - 12) / 10

    found = supernet.search(tables.weights, auc, 0, {}, heard.__setitem__)
    assert found.evaluated == len(heard)
    assert found.fitness == max(heard.values()) == heard[found.best]
    assert found.best[2] == 7
    structure = supernet.structure(tables.weights, found.best)
    assert list(structure.widths) == list(found.best)
    assert 0.97 * budget <= structure.layout(specs).serving_bytes <= budget
    starts = supernet.start_candidates()
    assert {(16,) * 4, (8,) * 4, (1,) * 4} <= set(starts) <= set(heard)


def test_the_paper_s_mode_has_no_budget():
    specs = make_specs()
    config = OptEmbedConfig(mode="paper")
    config.check_trainable()
    with pytest.raises(RecembError, match=r"mode=paper has no say over bytes; leave budget= out"):
        config.fit(specs, 10_000)
    supernet = config.pruning_table(specs)
    tables = CompressedEmbeddingBagCollection(specs, supernet)
    supernet.after_step(lambda: tables.weights, 3.0)
    assert float(supernet.level) == 0.0
    assert supernet.structure(tables.weights).num_kept == sum(spec.num_embeddings for spec in specs)
    supernet.thresholds.data.fill_(100.0)
    assert supernet.structure(tables.weights, [4] * 4).num_kept == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "auto"}, "table.mode=auto is not known"),
        ({"per": "column"}, "table.per=column is not known"),
        ({"alpha": -1.0}, "table.alpha=-1.0 must be"),
        ({"threshold_lr": math.inf}, "table.threshold_lr=inf must be"),
        ({"mutation": 0.0}, "table.mutation=0.0 must be"),
        ({"parents": 1}, "table.parents is 1; it must be at least 2"),
        ({"pruned": "mean"}, "table.pruned=mean is not known"),
        ({"ramp": -1.0}, "table.ramp=-1.0 must be"),
    ],
)
def test_what_makes_no_sense_is_told(options: dict[str, object], words: str):
    with pytest.raises(RecembError, match=words):
        OptEmbedConfig(**options)
