"""Tables of any model replaced in place: the same inputs, the same shapes, nearly the same vectors."""

import copy

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import recemb
from recemb import Packing, RecembError

WAYS = [
    Packing(precision="int8"),
    Packing(table="low_rank", budget="1/2", precision="fp16"),
    Packing(table="pq", budget="1/3"),
    Packing(table="magnitude", budget="1/2"),
]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.table}-{way.precision}")


class Model(nn.Module):
    """A model with tables of all kinds at different depths."""

    def __init__(self, mode: str = "sum", padding_idx: int | None = None):
        super().__init__()
        self.bags = nn.ModuleDict({"emb_a": nn.EmbeddingBag(3000, 16, mode=mode, padding_idx=padding_idx)})
        self.words = nn.Embedding(2000, 8, padding_idx=padding_idx)
        self.head = nn.Linear(24, 1)

    def forward(self, bags: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.bags["emb_a"](bags), self.words(words).mean(dim=1)], dim=1))


def collection(pooling: PoolingType = PoolingType.SUM, weighted: bool = False) -> EmbeddingBagCollection:
    sizes = {"t1": (4000, 16, ["a", "b"]), "t2": (900, 8, ["c"])}
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features, pooling=pooling)
        for name, (rows, dim, features) in sizes.items()
    ]
    return EmbeddingBagCollection(tables=configs, is_weighted=weighted)


def batch(weighted: bool = False) -> KeyedJaggedTensor:
    lengths = torch.tensor([1, 0, 3, 2, 2, 1, 0, 4, 1])
    random = torch.Generator().manual_seed(0)
    values = torch.randint(0, 900, (int(lengths.sum()),), generator=random)
    weights = torch.rand(len(values), generator=random) if weighted else None
    return KeyedJaggedTensor(keys=["c", "a", "b"], values=values, lengths=lengths, weights=weights)


@each_way
def test_the_report_and_the_bytes_are_those_of_the_new_modules(way: Packing):
    model = Model()
    (bags, words) = recemb.compress(model, way)
    assert (bags.name, words.name) == ("bags.emb_a", "words")
    assert bags.bytes_before == 3000 * 16 * 4
    held = sum(tensor.nbytes for tensor in model.bags["emb_a"].state_dict().values())
    assert bags.bytes_after == held < bags.bytes_before
    assert 0 < bags.error < 0.9
    assert "x smaller" in str(bags)
    assert not list(model.bags.parameters())


@each_way
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_and_rows_are_the_same_but_for_the_error(way: Packing, mode: str):
    model = Model(mode)
    before = copy.deepcopy(model)
    (bags, words) = recemb.compress(model, way)
    ids = torch.randint(0, 3000, (500, 4))
    vectors = [one.bags["emb_a"](ids).detach() for one in (before, model)]
    assert float((vectors[1] - vectors[0]).norm() / vectors[0].norm()) == pytest.approx(bags.error, rel=0.2)
    rows = [one.words(ids[:, :2] % 2000).detach() for one in (before, model)]
    assert rows[1].shape == (500, 2, 8)
    assert float((rows[1] - rows[0]).norm() / rows[0].norm()) == pytest.approx(words.error, rel=0.2)
    model(ids, ids % 2000).sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 5])
def test_every_form_of_bag_is_pooled_as_torch_does(mode: str, include_last_offset: bool, padding_idx: int | None):
    whole = nn.EmbeddingBag(40, 4, mode=mode, include_last_offset=include_last_offset, padding_idx=padding_idx)
    model = nn.Sequential(copy.deepcopy(whole))
    recemb.compress(model, Packing(precision="fp32"))
    ids, offsets = torch.tensor([5, 7, 5, 9, 39, 0]), torch.tensor([0, 0, 3, 3, 4])
    if include_last_offset:
        offsets = torch.cat([offsets, torch.tensor([6])])
    torch.testing.assert_close(model[0](ids, offsets), whole(ids, offsets))
    torch.testing.assert_close(model[0](ids.view(2, 3)), whole(ids.view(2, 3)))
    if mode == "sum":
        weights = torch.rand(6)
        torch.testing.assert_close(model[0](ids, offsets, weights), whole(ids, offsets, weights))


def test_the_padding_id_stays_zero_unless_somebody_gave_it_a_vector():
    model = Model(padding_idx=3)
    recemb.compress(model, Packing(table="pq", budget="1/3"))
    assert not model.words(torch.tensor([3])).any()
    given = Model(padding_idx=3)
    with torch.no_grad():
        given.words.weight[3] = 1.0
    recemb.compress(given, {"words": Packing(precision="int8")})
    torch.testing.assert_close(given.words(torch.tensor([3])), torch.ones(1, 8))


@pytest.mark.parametrize(
    ("pooling", "weighted"), [(PoolingType.SUM, False), (PoolingType.SUM, True), (PoolingType.MEAN, False)]
)
def test_a_torchrec_collection_keeps_its_face(pooling: PoolingType, weighted: bool):
    model = nn.ModuleDict({"ebc": collection(pooling, weighted)})
    wanted = model["ebc"](batch(weighted))
    configs = model["ebc"].embedding_bag_configs()
    (swapped,) = recemb.compress(model, Packing(precision="fp32"))
    found = model["ebc"](batch(weighted))
    assert swapped.error == 0
    assert model["ebc"].embedding_bag_configs() == configs
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found.values(), wanted.values())


def test_torchrecs_own_model_runs_on():
    from torchrec.models.dlrm import DLRM

    ebc = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="t", num_embeddings=900, embedding_dim=8, feature_names=["a", "b", "c"])]
    )
    model = DLRM(ebc, 5, [8], [8, 1])
    dense = torch.randn(3, 5)
    wanted = model(dense, batch())
    recemb.compress(model, {"*embedding_bag_collection": Packing(precision="int8")})
    torch.testing.assert_close(model(dense, batch()), wanted, rtol=1e-2, atol=1e-2)


def test_the_first_pattern_that_matches_counts():
    model = Model()
    swapped = recemb.compress(
        model, {"*emb_*": Packing(table="low_rank", budget="1/4"), "*": Packing(precision="int4")}
    )
    assert [one.table for one in swapped] == ["low_rank", "full"]


def test_one_module_under_two_names_stays_one():
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["b"] = model["a"]
    assert len(recemb.compress(model, Packing(precision="int8"))) == 1
    assert model["a"] is model["b"]


def test_counts_bring_popular_ids_nearer():
    counts = torch.cat([torch.full((100,), 10_000), torch.ones(1900, dtype=torch.int64)])
    errors = []
    for given in ({}, {"0": counts}):
        model = nn.Sequential(nn.Embedding(2000, 16))
        torch.manual_seed(0)
        nn.init.normal_(model[0].weight)
        model[0].weight.data[:100, 3:] = 0  # popular ids have directions of their own
        before = model[0].weight.detach().clone()
        recemb.compress(model, Packing(table="low_rank", budget="1/4"), counts=given)
        errors.append(float((model[0](torch.arange(100)) - before[:100]).norm()))
    assert errors[1] < 0.5 * errors[0]


def test_counts_may_be_in_any_order_where_no_order_matters():
    model = nn.Sequential(nn.Embedding(2000, 16))
    before = model[0].weight.detach().clone()
    before[1900:, 3:] = 0
    model[0].weight.data.copy_(before)
    counts = torch.ones(2000, dtype=torch.int64)
    counts[1900:] = 10_000
    recemb.compress(model, Packing(table="low_rank", budget="1/4"), counts={"0": counts})
    error = (model[0](torch.arange(2000)) - before).norm(dim=1)
    assert error[1900:].mean() < 0.3 * error[:1900].mean()
    for wrong, sentence in (
        ({"nobody": counts}, "'nobody', which is none of the tables: 0"),
        ({"0": counts[:5]}, r"have shape \(5,\), not \(2000,\)"),
        ({"0": counts / 2}, "must be whole numbers"),
        ({"0": -counts}, "not negative"),
    ):
        with pytest.raises(RecembError, match=sentence):
            recemb.compress(nn.Sequential(nn.Embedding(2000, 16)), Packing(precision="int8"), counts=wrong)
    with pytest.raises(RecembError, match="number the ids by descending frequency"):
        recemb.compress(
            nn.Sequential(nn.Embedding(2000, 16)), Packing(table="frequency", budget="1/4"), counts={"0": counts}
        )


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 10


def hooked() -> nn.Module:
    module = nn.Embedding(10, 4)
    module.register_forward_hook(lambda module, inputs, output: output * 10)
    return module


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.ModuleDict({"in": Scaled(10, 4)}), "a forward of its own"),
        (nn.ModuleDict({"in": hooked()}), "hooks"),
    ],
)
def test_what_would_be_lost_is_left_alone(model: nn.Module, sentence: str):
    with pytest.raises(RecembError, match=sentence):
        recemb.compress(model, Packing(precision="int8"))
    assert isinstance(model["in"], nn.Embedding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_model_runs_on_and_keeps_its_bytes(dtype: torch.dtype):
    model = Model().eval()
    (bags, _) = recemb.compress(model, Packing(table="low_rank", budget="1/2", precision="int8"))
    assert not model.words.training
    ids = torch.randint(0, 2000, (6, 4))
    wanted = model(ids, ids)
    found = model.to(dtype)(ids, ids)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=5e-2, atol=5e-2)
    assert sum(tensor.nbytes for tensor in model.bags["emb_a"].state_dict().values()) == bags.bytes_after


def test_one_feature_in_two_tables_keeps_both_names():
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=900, embedding_dim=8, feature_names=["a"]) for name in ("t1", "t2")
    ]
    model = nn.ModuleDict({"ebc": EmbeddingBagCollection(tables=configs)})
    wanted = model["ebc"](batch())
    recemb.compress(model, Packing(precision="fp32"))
    found = model["ebc"](batch())
    assert found.keys() == wanted.keys() == ["a@t1", "a@t2"]
    torch.testing.assert_close(found.values(), wanted.values())


def test_a_swapped_embedding_can_be_exported():
    model = Model()
    recemb.compress(model, Packing(table="pq", budget="1/3"))
    ids = torch.randint(0, 2000, (6, 4))
    program = torch.export.export(model, (ids, ids)).module()
    torch.testing.assert_close(program(ids, ids), model(ids, ids))
    with pytest.raises(RecembError, match="ids must be integers"):
        model.words(torch.tensor([1.5]))


@pytest.mark.parametrize(
    ("model", "plan", "sentence"),
    [
        (Model(), {"nothing*": WAYS[0]}, "is called like 'nothing\\*'; its tables: bags.emb_a, words"),
        (Model("max"), WAYS[0], "only sums and means can be compressed"),
        (Model(), Packing(table="hashing", budget="1/4"), "cannot be made from trained tables"),
        (Model(), Packing(table="frequency", budget="1/4"), "pass counts, with ids numbered"),
        (Model(), Packing(table="low_rank", budget="1/400"), "the least possible is"),
        (nn.Embedding(5, 4), WAYS[0], "put it into a module"),
        (nn.Linear(2, 2), WAYS[0], "its tables: none"),
    ],
)  # fmt: skip
def test_an_error_leaves_the_model_as_it_was(model: nn.Module, plan: object, sentence: str):
    before = list(model.named_modules())
    with pytest.raises(RecembError, match=sentence):
        recemb.compress(model, plan)
    assert list(model.named_modules()) == before


def test_an_id_out_of_range_is_named():
    model = Model()
    recemb.compress(model, Packing(precision="int8"))
    with pytest.raises(RecembError, match="id 2000 is out of range; the table has 2000 ids, 0 to 1999"):
        model.words(torch.tensor([[1, 2000]]))
