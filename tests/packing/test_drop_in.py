"""A compressed table is a drop-in for torch's: what a model reads, passes and shares works, or is refused in words."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import recemb
from recemb import Packing, RecembError

INT8 = Packing(precision="int8")
EXACT = Packing(precision="fp32")


class Scorer(nn.Module):
    """A model of sequences that scores against its own table, as SASRec does."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.item = nn.Embedding(100, dim, padding_idx=0)
        self.bag = nn.EmbeddingBag(50, dim, mode="sum", padding_idx=1)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        return self.item(history).mean(1) @ self.item.weight.t()


class Tied(nn.Module):
    """Input and output embeddings that are one."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.encoder = nn.Embedding(100, 8, padding_idx=2)
        self.decoder = nn.Linear(8, 100, bias=bias)
        self.decoder.weight = self.encoder.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(ids).sum(1))


ids = torch.randint(0, 50, (6, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "packing", [INT8, Packing(table="low_rank", budget="1/2"), Packing(table="pq", options={"centroids": 16})],
    ids=lambda packing: f"{packing.table}-{packing.precision}",
)  # fmt: skip
def test_the_weight_is_all_vectors_and_follows_the_model(packing: Packing, dtype: torch.dtype):
    model = Scorer().to(dtype)
    original = copy.deepcopy(model)
    swapped = recemb.compress(model, packing)
    assert swapped[0].bytes_before == original.item.weight.nbytes
    for name, size in (("item", 100), ("bag", 50)):
        table, weight = getattr(model, name), getattr(model, name).weight
        assert weight.dtype == dtype
        assert weight.shape == getattr(original, name).weight.shape
        assert not weight.requires_grad
        rows = torch.arange(size) if name == "item" else torch.arange(size).view(-1, 1)
        where = slice(None) if name == "item" else torch.arange(size) != table.padding_idx
        torch.testing.assert_close(table(rows)[where], weight[where], rtol=2e-2, atol=2e-2)
    assert not model.item.weight[0].any()  # padding
    assert model(ids).dtype == dtype


def test_a_stand_in_has_torchs_attributes():
    model = Scorer()
    original = copy.deepcopy(model)
    recemb.compress(model, INT8)
    for name in ("item", "bag"):
        ours, theirs = getattr(model, name), getattr(original, name)
        for attribute in theirs.__constants__:
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
        assert ours.extra_repr() == theirs.extra_repr()
        for refused in (
            lambda table=ours, like=theirs: setattr(table, "weight", like.weight),
            lambda table=ours, like=theirs: setattr(table, "weight", like.weight.data),
            ours.reset_parameters,
        ):
            with pytest.raises(RecembError, match="the rows are compressed"):
                refused()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((ids, None, torch.rand(4, 6)), r"one float for each id, \(6, 4\), not \(4, 6\)"),
        ((ids, None, torch.ones(6, 4, dtype=torch.int64)), "one float for each id"),
        ((ids.flatten(), torch.tensor([0, 3]), torch.rand(20)), r"\(24,\), not \(20,\)"),
        ((ids.flatten(), torch.tensor([1, 3])), "begin with 0, where the first bag does, not with 1"),
        ((ids.flatten(), torch.tensor([0, 10, 3])), "must not fall"),
        ((ids.flatten(), torch.tensor([0, 99])), "end at 99, and there are 24 ids"),
        ((ids.flatten(), torch.tensor([], dtype=torch.int64)), "end at 0, and there are 24 ids"),
        ((ids.flatten(), torch.tensor([[0, 3]])), r"must be \(B,\) int64 or int32"),
        ((ids.flatten(), torch.tensor([0.0, 3.0])), r"must be \(B,\) int64 or int32"),
        ((ids, torch.tensor([0, 3])), "with the offsets of their bags"),
        ((ids.flatten(),), "with the offsets of their bags"),
        ((ids[0, 0], torch.tensor([0])), "with the offsets of their bags"),
        ((ids.view(2, 3, 4),), "with the offsets of their bags"),
        ((ids > 3,), "ids must be integers, and these are torch.bool"),
        ((ids.float(),), "ids must be integers"),
        ((ids - 20,), "is out of range"),
    ],
)
def test_what_torch_refuses_is_refused_in_words(arguments: tuple[torch.Tensor, ...], sentence: str):
    """Or would end the process: torch's kernels read past their ends where offsets fall."""
    model = Scorer()
    recemb.compress(model, INT8)
    with pytest.raises(RecembError, match=sentence):
        model.bag(*arguments)


def test_a_last_offset_must_be_the_number_of_ids():
    model = nn.ModuleDict({"bag": nn.EmbeddingBag(50, 4, mode="sum", include_last_offset=True)})
    recemb.compress(model, INT8)
    for offsets in ([0, 3, 10], []):
        with pytest.raises(RecembError, match="offsets"):
            model["bag"](ids.flatten(), torch.tensor(offsets, dtype=torch.int64))


def test_nothing_to_look_up_gives_nothing():
    model = Scorer()
    recemb.compress(model, INT8)
    none = torch.zeros(0, dtype=torch.int64)
    assert model.item(none).shape == (0, 8)
    assert model.item(none.view(3, 0)).shape == (3, 0, 8)
    assert model.bag(none, none).shape == (0, 8)
    assert not model.bag(none, torch.zeros(3, dtype=torch.int64)).any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_output_scores_against_the_compressed_table(bias: bool):
    torch.manual_seed(0)
    model = Tied(bias)
    original = copy.deepcopy(model)
    (swapped,) = recemb.compress(model, INT8)
    assert swapped.tied == ("decoder",)
    assert "encoder (also decoder): full" in str(swapped)
    assert swapped.bytes_before == 100 * 8 * 4
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    assert sum(unique.values()) == swapped.bytes_after + (400 if bias else 0)
    assert (model.decoder.in_features, model.decoder.out_features) == (8, 100)
    torch.testing.assert_close(model.decoder.weight, model.encoder.weight)
    scores = model.encoder(ids).sum(1) @ model.encoder.weight.T
    torch.testing.assert_close(model(ids), scores if model.decoder.bias is None else scores + model.decoder.bias)
    torch.testing.assert_close(model(ids), original(ids), rtol=0, atol=0.2)
    assert isinstance(model.decoder.bias, nn.Parameter) == bias
    hidden = torch.rand(3, 8, requires_grad=True)
    model.decoder(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, model.decoder.weight.sum(0).expand(3, 8))


def test_two_tables_of_one_weight_stay_one():
    model = nn.ModuleDict({name: nn.Embedding(50, 8) for name in ("shared", "embed_tokens")})
    model["bag"] = nn.EmbeddingBag(50, 8)
    model["embed_tokens"].weight = model["bag"].weight = model["shared"].weight
    model["alias"] = model["shared"]
    (swapped,) = recemb.compress(model, INT8)
    assert (swapped.name, swapped.tied) == ("shared", ("alias", "embed_tokens", "bag"))
    assert model["alias"] is model["shared"]
    torch.testing.assert_close(model["embed_tokens"](ids), model["shared"](ids))
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    assert sum(unique.values()) == swapped.bytes_after


def test_a_pattern_that_hits_one_name_of_a_module_replaces_it_under_all():
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["b"] = model["a"]
    (swapped,) = recemb.compress(model, {"b": INT8})
    assert model["a"] is model["b"]
    assert (swapped.name, swapped.tied) == ("a", ("b",))
    assert not isinstance(model["a"], nn.Embedding)


def shares(other: nn.Module, plan: object = INT8) -> tuple[nn.Module, object]:
    model = nn.ModuleDict({"in": nn.Embedding(10, 4), "out": other})
    model["out"].weight = model["in"].weight
    return model, plan


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 4))


class Scaling(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def aliased() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["b"] = model["a"]
    return model


def with_forward_of_its_own() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["a"].forward = lambda ids: ids
    return model


def broken(value: float) -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["a"].weight.data[3, 3] = value
    return model


def with_backward_hook() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(500, 8)})
    model["a"].register_full_backward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("model", "plan", "sentence"),
    [
        (*shares(nn.Embedding(10, 4), {"in": INT8}), "hold one weight, and the plan has out left out"),
        (*shares(nn.Embedding(10, 4), {"in": INT8, "out": EXACT}), "the plan has out in another way"),
        (*shares(Custom()), r"is also that of out \(Custom\), which cannot read"),
        (*shares(Scaling(4, 10)), r"is also that of out \(Scaling\), which cannot read"),
        (aliased(), {"a": INT8, "b": EXACT}, "a and b are one module, and the plan holds them in different ways"),
        (with_forward_of_its_own(), INT8, "does more than a Embedding does"),
        (with_backward_hook(), INT8, "does more than a Embedding does"),
        (broken(float("nan")), INT8, "holds NaN or infinite numbers"),
        (broken(float("inf")), INT8, "holds NaN or infinite numbers"),
        (nn.ModuleDict({"a": nn.Embedding(5, 4, device="meta")}), INT8, "has no values yet"),
        (Scorer(), "int8", "plan is a str; give a Packing"),
        (Scorer(), None, "plan is a NoneType; give a Packing"),
        (Scorer(), {}, "plan names no table"),
        (Scorer(), {"item": "int8"}, "plan holds 'int8' for 'item'"),
        (Scorer(), {"item": {"precision": "int8"}}, "it takes a Packing for each pattern"),
        (Scorer(), {3: INT8}, "for 3; it takes a Packing"),
        ("model", INT8, "model is a str; give the nn.Module"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_is_a_sentence_and_changes_nothing(model: nn.Module, plan: object, sentence: str):
    before = list(model.named_modules(remove_duplicate=False)) if isinstance(model, nn.Module) else []
    with pytest.raises(RecembError, match=sentence):
        recemb.compress(model, plan)
    assert not before or list(model.named_modules(remove_duplicate=False)) == before


@pytest.mark.parametrize("model", [Scorer(), Tied()], ids=["scorer", "tied"])
def test_a_compressed_model_can_be_copied_saved_traced_and_compiled(model: nn.Module):
    model = copy.deepcopy(model).eval()
    recemb.compress(model, INT8)
    wanted = model(ids)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = copy.deepcopy(model)
    for tensor in loaded.state_dict().values():
        tensor.zero_()
    loaded.load_state_dict(model.state_dict())
    others = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False), loaded)
    for other in others:
        torch.testing.assert_close(other(ids), wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"[\s\S]*torch.jit", category=DeprecationWarning)
        traced = torch.jit.trace(model, (ids,), check_trace=False)
    program = torch.export.export(model, (ids,), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    for rows in (2, 6, 9):  # the number of ids is not kept
        some = torch.arange(rows * 4).view(rows, 4)
        torch.testing.assert_close(traced(some), model(some))
        torch.testing.assert_close(program(some), model(some))


def keyed(weighted: bool = False) -> KeyedJaggedTensor:
    lengths = torch.tensor([1, 0, 3, 2, 2, 1])
    values = torch.arange(int(lengths.sum()))
    weights = torch.rand(len(values)) if weighted else None
    return KeyedJaggedTensor(keys=["a", "b"], values=values, lengths=lengths, weights=weights)


@pytest.mark.parametrize("need_indices", [False, True])
def test_an_embedding_collection_of_torchrec_keeps_its_face(need_indices: bool):
    tables = [
        EmbeddingConfig(name="t1", num_embeddings=40, embedding_dim=8, feature_names=["a", "b"]),
        EmbeddingConfig(name="t2", num_embeddings=30, embedding_dim=8, feature_names=["a"]),
    ]
    model = nn.ModuleDict({"ec": EmbeddingCollection(tables=tables, need_indices=need_indices)})
    wanted = model["ec"](keyed())
    (swapped,) = recemb.compress(model, EXACT)
    assert swapped.bytes_before == 70 * 8 * 4
    found = model["ec"](keyed())
    assert list(found) == list(wanted) == ["a@t1", "b", "a@t2"]
    for name, jagged in wanted.items():
        torch.testing.assert_close(found[name].values(), jagged.values())
        torch.testing.assert_close(found[name].lengths(), jagged.lengths())
        if need_indices:
            torch.testing.assert_close(found[name].weights(), jagged.weights())
    assert (model["ec"].embedding_configs(), model["ec"].need_indices()) == (tables, need_indices)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fused_collection_of_torchrec_keeps_its_face(weighted: bool):
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=40, embedding_dim=8, feature_names=["a", "b"])
        for name in ("t1", "t2")
    ]
    options = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.1}, "is_weighted": weighted}
    model = nn.ModuleDict({"ebc": FusedEmbeddingBagCollection(tables=tables, **options)})
    batch = keyed(weighted)
    wanted = model["ebc"](batch)
    recemb.compress(model, EXACT)
    found = model["ebc"](batch)
    assert found.keys() == wanted.keys() == ["a@t1", "b@t1", "a@t2", "b@t2"]
    torch.testing.assert_close(found.values(), wanted.values())
    tables[0].pooling = PoolingType.MEAN
    mixed = nn.ModuleDict({"ebc": FusedEmbeddingBagCollection(tables=tables, **options)})
    with pytest.raises(RecembError, match="split it into one collection for each"):
        recemb.compress(mixed, EXACT)


def test_a_batch_that_does_not_fit_a_collection_is_a_sentence():
    tables = [EmbeddingBagConfig(name="t", num_embeddings=40, embedding_dim=8, feature_names=["a", "c"])]
    for weighted in (False, True):
        model = nn.ModuleDict({"ebc": EmbeddingBagCollection(tables=tables, is_weighted=weighted)})
        recemb.compress(model, EXACT)
        with pytest.raises(RecembError, match="the batch has no feature 'c'; it has a, b"):
            model["ebc"](keyed())
        with pytest.raises(RecembError, match="takes a KeyedJaggedTensor, not Tensor"):
            model["ebc"](ids)
    lengths, values = torch.tensor([1, 2, 1]), torch.arange(4)
    with pytest.raises(RecembError, match="the batch has no weights"):
        model["ebc"](KeyedJaggedTensor(keys=["a", "c"], values=values, lengths=torch.tensor([1, 3])))
    uneven = KeyedJaggedTensor(
        keys=["a", "c"], values=values, lengths=lengths, stride_per_key_per_rank=[[2], [1]], weights=torch.ones(4)
    )
    with pytest.raises(RecembError, match="batches of sizes of their own"):
        model["ebc"](uneven)
