"""DCN V2 against numpy, what it can learn that a linear model cannot, and what it must refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tables_samples import make_batch, make_specs
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, RecembError, TableSpec
from recemb.models import DCNv2Config
from recemb.tables.base import TableConfig
from recemb.tables.full import FullConfig
from recemb.tables.hashing import HashingConfig

SMALL = DCNv2Config(embedding_dim=5, deep_layers=[8, 6], dense_bins=4)


def sample(rows: int, numbers: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, numbers, generator=random)
    dense[torch.rand(rows, numbers, generator=random) < 0.2] = torch.nan
    return dense


def mixed_specs() -> list[TableSpec]:
    """Tables of widths 2, 3, 4 and 5, one of them read by two features."""
    specs = [dataclasses.replace(spec, embedding_dim=2 + i) for i, spec in enumerate(make_specs())]
    specs[1].feature_names = ["home", "work"]
    return specs


def build(config: DCNv2Config, numbers: int, specs: list[TableSpec], table: TableConfig) -> nn.Module:
    torch.manual_seed(0)
    tables = CompressedEmbeddingBagCollection(specs, table)
    model = config.build(tables, sample(500, numbers))
    for parameter in model.parameters():  # large enough for every term to show
        nn.init.normal_(parameter, std=0.5)
    return model


def matrices(model: nn.Module, low_rank: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """W (N, N) and b (N,) of each cross layer."""
    state = {name: tensor.detach().numpy() for name, tensor in model.cross.state_dict().items()}
    count = sum(name.startswith("bias") for name in state)
    kernels = [
        state[f"W_kernels.{i}"] @ state[f"V_kernels.{i}"] if low_rank else state[f"kernels.{i}"] for i in range(count)
    ]
    return [(kernel, state[f"bias.{i}"].reshape(-1)) for i, kernel in enumerate(kernels)]


def reference(model: nn.Module, config: DCNv2Config, dense: torch.Tensor, batch: KeyedJaggedTensor) -> np.ndarray:
    """The whole model in numpy, from the vectors on."""
    scaled, bins = (part.detach().numpy() for part in model.encoder(dense))
    vectors = [model.tables(batch)[name].detach().numpy() for name in batch.keys()]  # noqa: SIM118 - not a dict
    x0 = np.concatenate([*vectors, scaled, bins.reshape(len(dense), -1)], axis=1)
    crossed = x0
    for kernel, bias in matrices(model, config.cross_rank is not None):
        crossed = x0 * (crossed @ kernel.T + bias) + crossed
    hidden = x0 if config.structure == "parallel" else crossed
    linear = [
        (part.weight.detach().numpy(), part.bias.detach().numpy()) for part in model.deep if hasattr(part, "bias")
    ]
    if config.normalize:
        (weight, bias), *linear = linear
        centred = hidden - hidden.mean(axis=1, keepdims=True)
        hidden = centred / np.sqrt(hidden.var(axis=1, keepdims=True) + 1e-5) * weight + bias
    for weight, bias in linear:
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    last = np.concatenate([crossed, hidden], axis=1) if config.structure == "parallel" else hidden
    return (last @ model.last.weight.detach().numpy().T + model.last.bias.detach().numpy())[:, 0]


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize("cross_rank", [None, 3])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("numbers", [0, 3])
def test_logits_are_the_papers(structure: str, cross_rank: int | None, normalize: bool, numbers: int):
    config = dataclasses.replace(SMALL, cross_layers=3, cross_rank=cross_rank, structure=structure, normalize=normalize)
    specs = mixed_specs()
    model = build(config, numbers, specs, FullConfig()).double()
    assert len(matrices(model, cross_rank is not None)) == 3
    batch, dense = make_batch(specs, bags=20), sample(20, numbers).double()
    np.testing.assert_allclose(model(dense, batch).detach(), reference(model, config, dense, batch), rtol=1e-9)


def test_the_input_is_every_vector_in_its_own_width():
    model = build(SMALL, 3, mixed_specs(), FullConfig())
    widths = 2 + 2 * 3 + 4 + 5 + 3 * (2 + 5)
    assert model.cross.kernels[0].shape == (widths, widths)
    wide = build(SMALL, 0, mixed_specs(), HashingConfig(rows=100))
    assert wide.cross.kernels[0].shape == (17, 17)


def test_cross_layers_start_near_the_identity():
    torch.manual_seed(0)
    specs = make_specs()
    for rank in (None, 16):
        config = DCNv2Config(cross_layers=3, cross_rank=rank)
        model = config.build(CompressedEmbeddingBagCollection(specs, FullConfig()), torch.zeros(4, 0))
        vectors = model.tables(make_batch(specs, bags=200, empty=False)).values()
        added = model.cross(vectors) - vectors
        assert 0 < added.std() < 0.05 * vectors.std()


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize("cross_rank", [None, 2])
@pytest.mark.parametrize("numbers", [0, 3])
def test_every_weight_learns(structure: str, cross_rank: int | None, numbers: int):
    specs = mixed_specs()
    config = dataclasses.replace(SMALL, structure=structure, cross_rank=cross_rank)
    model = build(config, numbers, specs, FullConfig())
    logits = model(sample(1000, numbers), make_batch(specs, bags=1000))
    assert logits.shape == (1000,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.numel():
            assert parameter.grad.abs().sum() > 0, name


def test_it_learns_a_crossing_that_a_linear_model_cannot():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (2, 6000), generator=random)
    labels = (ids[0] % 2 == ids[1] % 2).float()
    train, test = slice(0, 4000), slice(4000, None)

    one_hot = nn.functional.one_hot(ids, 20).permute(1, 0, 2).flatten(1).numpy()
    linear = LogisticRegression().fit(one_hot[train], labels[train])
    assert roc_auc_score(labels[test], linear.predict_proba(one_hot[test])[:, 1]) < 0.6

    torch.manual_seed(0)
    specs = [TableSpec(name=name, num_embeddings=20, embedding_dim=4, max_length=1) for name in ("user", "item")]
    tables = CompressedEmbeddingBagCollection(specs, FullConfig())
    # A single hidden unit alone could not tell the four cases apart, so the crossing must do it.
    config = DCNv2Config(embedding_dim=4, init_std=0.1, cross_layers=1, deep_layers=[1], structure="parallel")
    model = config.build(tables, torch.zeros(1, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def logits(part: slice) -> torch.Tensor:
        values = ids[:, part]
        batch = KeyedJaggedTensor(
            keys=["user", "item"], values=values.flatten(), lengths=torch.ones(values.numel(), dtype=torch.int64)
        )
        return model(torch.zeros(values.shape[1], 0), batch)

    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits(train), labels[train]).backward()
        optimizer.step()
    assert roc_auc_score(labels[test], logits(test).detach()) > 0.99


def test_options_out_of_range_are_named():
    for options, said in (
        ({"embedding_dim": 0}, "model.embedding_dim=0"),
        ({"cross_layers": 0}, "model.cross_layers=0 is too small; it must be at least 1"),
        ({"cross_rank": 0}, "model.cross_rank=0 is too small; it must be at least 1"),
        ({"deep_layers": []}, "model.deep_layers=\\[\\] must be a list"),
        ({"deep_layers": [8, 0]}, "model.deep_layers=\\[8, 0\\] must be a list"),
        ({"structure": "beside"}, "model.structure=beside is not known; choose stacked or parallel"),
        ({"dense_bins": 1}, "model.dense_bins=1 is too small; it must be at least 2"),
    ):
        with pytest.raises(RecembError, match=said):
            DCNv2Config(**options)
    with pytest.raises(RecembError, match=r"model\.cross_rank=18 is more than the 17 numbers"):
        build(dataclasses.replace(SMALL, cross_rank=18), 0, mixed_specs(), FullConfig())
