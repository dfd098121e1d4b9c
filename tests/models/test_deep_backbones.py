"""DeepFM, Wide & Deep, FNN, IPNN and AutoInt against numpy, with every method, exported, and what they must refuse."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import array, build, layer_norm, numbers_of, specs_of, through
from parameters import mostly_wide
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tables_samples import make_batch, make_specs
from torch import nn
from torchrec.distributed.train_pipeline.tracing import Tracer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError, TableSpec, get_table, list_tables
from recemb.datasets import Feature
from recemb.models import (
    MODELS,
    AutoIntConfig,
    DeepFMConfig,
    DLRMConfig,
    FNNConfig,
    IPNNConfig,
    ModelConfig,
    WideDeepConfig,
)
from recemb.packing.programs import capture, run_onnx, write_onnx
from recemb.packing.serving import ServingModel, ServingTables, Widths
from recemb.plan import make_plan, table_specs
from recemb.tables.bags import flat_ids
from recemb.tables.base import CompressedTable, TableConfig, total_full_bytes
from recemb.tables.full import FullConfig
from recemb.tables.pruned import PrunedConfig

Parts = list[np.ndarray]
SMALL = {"deep_layers": [8, 6], "dense_bins": 4}
CONFIGS: dict[str, ModelConfig] = {
    "deepfm": DeepFMConfig(embedding_dim=5, **SMALL),
    "wide_deep": WideDeepConfig(embedding_dim=5, **SMALL),
    "fnn": FNNConfig(embedding_dim=5, **SMALL),
    "ipnn": IPNNConfig(embedding_dim=5, **SMALL),
    "autoint": AutoIntConfig(embedding_dim=5, attention_layers=2, heads=3, head_dim=4, dense_bins=4),
    "autoint+": AutoIntConfig(embedding_dim=5, attention_layers=1, heads=2, head_dim=3, **SMALL),
}
ONE_WIDTH = ["deepfm", "ipnn", "autoint"]
FIRST_ORDER = ["deepfm", "wide_deep"]


def deepfm(model: nn.Module, fields: Parts, scaled: np.ndarray) -> np.ndarray:
    """Equations 1 to 4 of the paper; a row is (w, v)."""
    w, v = [field[:, 0] for field in fields], [field[:, 1:] for field in fields]
    second = sum((v[i] * v[j]).sum(axis=1) for i in range(len(v)) for j in range(i + 1, len(v)))
    return sum(w) + second + through(np.concatenate([*v, scaled], axis=1), model.deep)[:, 0]


def wide_deep(model: nn.Module, fields: Parts, scaled: np.ndarray) -> np.ndarray:
    deep = through(np.concatenate([*(field[:, 1:] for field in fields), scaled], axis=1), model.deep)
    return sum(field[:, 0] for field in fields) + deep[:, 0]


def fnn(model: nn.Module, fields: Parts, scaled: np.ndarray) -> np.ndarray:
    return through(np.concatenate([*fields, scaled], axis=1), model.deep)[:, 0]


def ipnn(model: nn.Module, fields: Parts, scaled: np.ndarray) -> np.ndarray:
    z = np.concatenate([*fields, scaled], axis=1)
    pairs = [(i, j) for i in range(len(fields)) for j in range(i + 1, len(fields))]
    p = np.stack([(fields[i] * fields[j]).sum(axis=1) for i, j in pairs], axis=1)
    if isinstance(model.normalize_linear, nn.LayerNorm):
        z, p = layer_norm(z, model.normalize_linear), layer_norm(p, model.normalize_products)
    return through(np.concatenate([z, p], axis=1), model.deep)[:, 0]


def autoint(model: nn.Module, fields: Parts, scaled: np.ndarray) -> np.ndarray:
    """Equations 5 to 9 of the paper, head by head, attention over the root of its width."""
    e = np.stack(fields, axis=1)
    for layer in model.attention:
        if isinstance(layer, nn.LayerNorm):
            e = layer_norm(e, layer)
            continue
        projections = array(layer.attend.weight).reshape(3, layer.heads, layer.head_dim, -1)
        heads = []
        for query, key, value in projections.swapaxes(0, 1):
            scores = np.einsum("bmd,bnd->bmn", e @ query.T, e @ key.T) / np.sqrt(layer.head_dim)
            attention = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
            heads.append(attention @ (e @ value.T))
        e = np.maximum(np.concatenate(heads, axis=2) + e @ array(layer.residual.weight).T, 0)
    logits = e.reshape(len(e), -1) @ array(model.last.weight)[0] + array(model.last.bias)
    if model.deep is not None:
        logits = logits + through(np.concatenate([*fields, scaled], axis=1), model.deep)[:, 0]
    return logits


REFERENCES: dict[str, Callable[[nn.Module, Parts, np.ndarray], np.ndarray]] = {
    "deepfm": deepfm, "wide_deep": wide_deep, "fnn": fnn, "ipnn": ipnn, "autoint": autoint, "autoint+": autoint,
}  # fmt: skip


def widths_for(name: str) -> list[tuple[int, ...]]:
    return [(5,)] if name.rstrip("+") in ONE_WIDTH else [(5,), (2, 3, 4, 6)]


@pytest.mark.parametrize(("name", "widths"), [(name, widths) for name in CONFIGS for widths in widths_for(name)])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("numbers", [0, 3])
def test_logits_are_the_papers(name: str, widths: tuple[int, ...], normalize: bool, numbers: int):
    specs = specs_of(*widths)
    model = build(dataclasses.replace(CONFIGS[name], normalize=normalize), numbers, specs, FullConfig()).double()
    batch, dense = make_batch(specs, bags=20), numbers_of(20, numbers).double()
    scaled, bins = (array(part) for part in model.encoder(dense))
    fields = [array(model.tables(batch)[feature]) for feature in batch.keys()]  # noqa: SIM118 - not a dict
    fields += list(bins.transpose(1, 0, 2))
    expected = REFERENCES[name](model, fields, scaled)
    assert expected.std() > 0.1
    np.testing.assert_allclose(array(model(dense, batch)), expected, rtol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("numbers", [0, 3])
def test_every_weight_learns(name: str, numbers: int):
    specs = specs_of(5)
    model = build(CONFIGS[name], numbers, specs, FullConfig())
    logits = model(numbers_of(1000, numbers), make_batch(specs, bags=1000))
    assert logits.shape == (1000,)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter.numel():
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_single_feature_is_enough(name: str):
    specs = make_specs(dim=5)[:1]
    model = build(CONFIGS[name], 0, specs, FullConfig())
    logits = model(torch.zeros(7, 0), make_batch(specs))
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_what_holds_the_tables_can_be_traced(name: str):
    """Torchrec's overlapping steps follow the model by symbols, everything beside the tables a leaf."""
    model = build(CONFIGS[name], 3, specs_of(5), FullConfig())
    leaves = [child for child, _ in model.named_children()]
    graph = Tracer(leaf_modules=leaves).trace(model)
    assert [node.target for node in graph.nodes if node.op == "call_module"][:2] == ["tables", "encoder"]


def two_steps(config: ModelConfig, specs: list[TableSpec], table: TableConfig | CompressedTable) -> list[float]:
    """Losses of three batches that are the same, with a step after the first and the second."""
    torch.manual_seed(0)
    tables = CompressedEmbeddingBagCollection(specs, table, optimizer=FusedOptimizer(lr=0.1))
    model = config.build(tables, numbers_of(100, 3))
    dense_optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.01)
    batch, dense = make_batch(specs, bags=64), numbers_of(64, 3)
    labels = torch.arange(64).remainder(2).float()
    losses = []
    for _ in range(3):
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, batch), labels)
        penalty = tables.method.penalty()
        dense_optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        dense_optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", [name for name in CONFIGS if name in MODELS])
@pytest.mark.parametrize("method", [method.name for method in list_tables()])
def test_every_method_trains_below_it(method: str, name: str):
    config = dataclasses.replace(CONFIGS[name], embedding_dim=8)
    specs = make_specs(dim=8)
    table = get_table(method).config().fit(specs, total_full_bytes(specs) // 2)
    config.check_widths(table.layout(specs).dims)
    first, _, last = two_steps(config, specs, table)
    assert last < first
    if isinstance(table, PrunedConfig):
        first, _, last = two_steps(config, specs, table.pruning_table(specs))
        assert last < first


@pytest.mark.parametrize("name", mostly_wide(CONFIGS, "autoint"))
@pytest.mark.parametrize("numbers", [pytest.param(0, marks=pytest.mark.wide), 3])
def test_an_exported_program_gives_the_live_logits(name: str, numbers: int, tmp_path: Path):
    specs = specs_of(5)
    live = build(CONFIGS[name], numbers, specs, FullConfig())
    served = ServingTables(live.tables.method, live.tables.weights)
    backbone = CONFIGS[name].build(Widths(served.embedding_bag_configs()), torch.zeros(2, numbers))
    state = live.state_dict()
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
    model = ServingModel(served, backbone)

    def inputs_of(rows: int) -> tuple[torch.Tensor, KeyedJaggedTensor, dict[str, torch.Tensor]]:
        dense, batch = numbers_of(rows, numbers), make_batch(specs, bags=rows, seed=rows)
        values, offsets = flat_ids(batch, live.tables.features)
        return dense, batch, {"dense": dense, "values": values, "offsets": offsets}

    program = capture(model, {key: one.nan_to_num() for key, one in inputs_of(3)[2].items()})
    write_onnx(program, tmp_path / "model.onnx", "logits")
    onnx = run_onnx(tmp_path / "model.onnx")
    for rows in (1, 50):
        dense, batch, inputs = inputs_of(rows)
        wanted = live(dense, batch).detach()
        assert rows == 1 or wanted.std() > 0.1
        torch.testing.assert_close(program.module()(**inputs), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(onnx(*inputs.values()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.wide
@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_a_crossing_that_a_linear_model_cannot(name: str):
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (2, 3000), generator=random)
    labels = (ids[0] % 2 == ids[1] % 2).float()
    train, test = slice(0, 2000), slice(2000, None)
    one_hot = nn.functional.one_hot(ids, 20).permute(1, 0, 2).flatten(1).numpy()
    linear = LogisticRegression().fit(one_hot[train], labels[train])
    assert roc_auc_score(labels[test], linear.predict_proba(one_hot[test])[:, 1]) < 0.6

    torch.manual_seed(0)
    specs = [TableSpec(name=feature, num_embeddings=20, embedding_dim=5, max_length=1) for feature in ("a", "b")]
    tables = CompressedEmbeddingBagCollection(specs, FullConfig())
    model = dataclasses.replace(CONFIGS[name], init_std=0.1).build(tables, torch.zeros(1, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def logits(part: slice) -> torch.Tensor:
        values = ids[:, part]
        lengths = torch.ones(values.numel(), dtype=torch.int64)
        batch = KeyedJaggedTensor(keys=["a", "b"], values=values.flatten(), lengths=lengths)
        return model(torch.zeros(values.shape[1], 0), batch)

    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits(train), labels[train]).backward()
        optimizer.step()
    assert roc_auc_score(labels[test], logits(test).detach()) > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_counts_all_that_grows_with_the_ids(name: str):
    """First-order weights are bytes of the tables: what is beside them is as large for ten times the ids."""
    config = MODELS[name](embedding_dim=8)
    beside = []
    for ids in (50, 500):
        features = [Feature("a", ids), Feature("b", 2 * ids)]
        plan = make_plan(features, FullConfig(), config)
        tables = CompressedEmbeddingBagCollection(table_specs(features, config), FullConfig())
        assert plan.totals.bytes == sum(one.nbytes for one in tables.weights) == 3 * ids * 8 * 4
        model = config.build(tables, torch.zeros(2, 3))
        beside.append(sum(one.nbytes for one in model.parameters()) - plan.totals.bytes)
    assert beside[0] == beside[1]


@pytest.mark.parametrize("name", ONE_WIDTH)
def test_mixed_widths_are_refused_where_one_is_needed(name: str):
    with pytest.raises(RecembError, match=rf"model={name} .* one width, not \[4, 8\]; model=dcn_v2 takes several"):
        CONFIGS[name].check_widths([4, 8, 4])
    with pytest.raises(RecembError, match="one width"):
        build(CONFIGS[name], 0, specs_of(2, 3, 4, 6), FullConfig())


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_row_without_room_for_a_vector_is_refused(name: str):
    with pytest.raises(RecembError, match="must be at least 2 wide, not 1; give a larger budget"):
        build(CONFIGS[name], 0, specs_of(5), FullConfig(width=1))
    with pytest.raises(RecembError, match=r"model\.embedding_dim=1 is too small; it must be at least 2"):
        MODELS[name](embedding_dim=1)
    build(CONFIGS[name], 0, specs_of(5), FullConfig(width=2))


def test_options_out_of_range_are_named():
    for config in (DeepFMConfig, WideDeepConfig, FNNConfig, IPNNConfig):
        with pytest.raises(RecembError, match=r"model\.deep_layers=\[\] must be a list"):
            config(deep_layers=[])
        with pytest.raises(RecembError, match=r"model\.dense_bins=1 is too small; it must be at least 2"):
            config(dense_bins=1)
    with pytest.raises(RecembError, match=r"model\.deep_layers=\[0\] must be a list"):
        AutoIntConfig(deep_layers=[0])
    for name in ("attention_layers", "heads", "head_dim"):
        with pytest.raises(RecembError, match=rf"model\.{name}=0 is too small; it must be at least 1"):
            AutoIntConfig(**{name: 0})


def test_only_dlrm_has_no_weights_for_single_features():
    assert {name for name, config in MODELS.items() if not config.weighs_features} == {DLRMConfig.name}


def test_the_readme_names_every_backbone():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|.*\| (?:one|any) \|", readme, re.MULTILINE) == list(MODELS)
    for name, config in MODELS.items():
        takes_one = config.check_widths is not ModelConfig.check_widths and name != "wide_deep"
        assert re.search(rf"^\| `{name}` \|.*\| {'one' if takes_one else 'any'} \|", readme, re.MULTILINE), name
