"""What torch promises of any module holds for every collection: of each method, however its rows are held."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from idioms_samples import (
    BROADCAST,
    COPIES,
    FLOATS,
    FUSED,
    PLAIN,
    QUANTIZED,
    SERVING,
    Subject,
    cases,
    collection,
    subject,
    through_torch_save,
)
from tables_samples import make_batch, make_specs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import recemb
from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, Packing, RecembError, TableSpec, get_table
from recemb.tables.bags import flat_ids
from recemb.tables.collection import REPLICATED, SHARDED
from recemb.tables.storage import FusedTables
from recemb.training.checkpoint import load_weights, save_weights
from recemb.training.sharding import spread

ignores_sharded_tensors = pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning")
every_case = cases(PLAIN, FUSED, QUANTIZED, SERVING)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_case
def test_copies_give_the_same_vectors_and_state(storage: str, name: str):
    one = subject(storage, name)
    wanted = one.of(one.module.eval())
    for duplicate in COPIES:
        twin = duplicate(one.module)
        assert not twin.training
        assert torch.equal(one.of(twin), wanted)
        assert list(twin.state_dict()) == list(one.module.state_dict())
        assert [weight.requires_grad for weight in twin.parameters()] == [
            weight.requires_grad for weight in one.module.parameters()
        ]


@every_case
def test_a_state_goes_through_a_file_and_fits_strictly(storage: str, name: str):
    one = subject(storage, name)
    file = io.BytesIO()
    torch.save(one.module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(one.module)
    for tensor in [*other.parameters(), *(buffer for key, buffer in other.named_buffers() if "packed" in key)]:
        tensor.detach().zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one.of(other), one.wanted)


def test_16_bit_keys_go_through_a_checkpoint(tmp_path: Path):
    one = subject(PLAIN, "rows-keys16")
    assert one.module.state_dict()["method.keys"].dtype == torch.int16  # as in files that were written before
    save_weights(one.module, tmp_path / "saved")
    kept = one.module.method.keys.clone()
    one.module.method.keys.zero_()
    load_weights(one.module, tmp_path / "saved")
    assert torch.equal(one.module.method.keys, kept)


@every_case
def test_evaluation_gives_the_same_vectors_in_every_mode(storage: str, name: str):
    one = subject(storage, name)
    with torch.no_grad():
        assert torch.equal(one.of(one.module), one.wanted)
    with torch.inference_mode():
        assert torch.equal(one.of(one.module), one.wanted)
        inside = subject(storage, name)
    assert torch.equal(inside.wanted, one.wanted)
    out = one.of(one.module)  # and training goes on after it
    if storage in (PLAIN, FUSED):
        out.square().sum().backward()


@every_case
@pytest.mark.parametrize("cast", FLOATS)
def test_a_cast_gives_its_type_or_a_sentence_and_leaves_integers(storage: str, name: str, cast: str):
    one = subject(storage, name)
    kept = {key: buffer.dtype for key, buffer in one.module.named_buffers() if not buffer.is_floating_point()}
    for change in (getattr(one.module, cast), lambda: one.module.type(FLOATS[cast])):
        if storage in (FUSED, QUANTIZED):
            with pytest.raises(RecembError, match="float32"):
                change()
            continue
        change()
        vectors = one.of(one.module)
        assert vectors.dtype == (FLOATS[cast] if storage == PLAIN else torch.float32)
        assert kept == {key: buffer.dtype for key, buffer in one.module.named_buffers() if key in kept}
        scale = one.wanted.abs().max()
        torch.testing.assert_close(vectors.double() / scale, one.wanted.double() / scale, atol=2e-2, rtol=0)


@every_case
def test_autocast_gives_nearly_the_same_vectors(storage: str, name: str):
    one = subject(storage, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = one.of(one.module)
        if vectors.requires_grad:
            vectors.float().square().sum().backward()
    scale = one.wanted.abs().max()
    torch.testing.assert_close(vectors.float() / scale, one.wanted / scale, atol=2e-2, rtol=0)


@every_case
def test_shared_memory_holds_every_tensor(storage: str, name: str):
    one = subject(storage, name)
    one.module.share_memory()
    for key, tensor in [*one.module.named_parameters(), *one.module.named_buffers()]:
        assert tensor.is_shared(), key
    assert torch.equal(one.of(one.module), one.wanted)


@every_case
def test_every_tensor_can_be_broadcast(storage: str, name: str):
    module = subject(storage, name).module
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert tensor.dtype in BROADCAST, key


@cases(PLAIN, QUANTIZED, SERVING)
def test_a_model_with_tables_trains_in_distributed_data_parallel(storage: str, name: str, process_group: None):
    one = subject(storage, name)
    model = nn.Sequential(one.module, nn.Linear(1, 1))  # quantized tables have nothing to train
    DistributedDataParallel(model)
    if storage == PLAIN:
        wrapped = DistributedDataParallel(one.module)
        for _ in range(2):
            out = one.of(wrapped)
            out.sum().backward()
        assert torch.equal(out, one.wanted)


def test_fused_rows_are_refused_in_distributed_data_parallel(process_group: None):
    one = subject(FUSED, "full")
    model = nn.ModuleDict({"tables": one.module, "head": nn.Linear(1, 1)})
    model.forward = lambda batch: one.module(batch).values()  # type: ignore[method-assign]
    with pytest.raises(RecembError, match="cannot be trained in DistributedDataParallel"):
        DistributedDataParallel(model)(one.batch)
    one.module.requires_grad_(False)
    assert torch.equal(DistributedDataParallel(model)(one.batch), one.wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # what dynamo does by itself
@pytest.mark.parametrize("storage", [PLAIN, FUSED, QUANTIZED, SERVING])
def test_compiled_tables_give_the_same_vectors(storage: str):
    one = subject(storage, "multiplexed")
    torch._dynamo.reset()
    compiled = torch.compile(one.module, backend="eager")
    out = compiled(*flat_ids(one.batch, one.module.features)) if storage == SERVING else compiled(one.batch).values()
    torch.testing.assert_close(out, one.wanted)


def test_other_weights_reach_plain_tables_and_are_refused_where_kernels_hold_them():
    plain, fused = subject(PLAIN, "full"), subject(FUSED, "full")
    zeros = {name: torch.zeros_like(weight) for name, weight in plain.module.named_parameters()}
    assert not torch.func.functional_call(plain.module, zeros, (plain.batch,)).values().any()
    with pytest.raises(RecembError, match="was replaced, as torch"):
        torch.func.functional_call(fused.module, zeros, (fused.batch,))
    quantized = subject(QUANTIZED, "full")
    other = {name: torch.zeros_like(tensor) for name, tensor in quantized.module.state_dict().items()}
    with pytest.raises(RecembError, match="were replaced, as torch"):
        torch.func.functional_call(quantized.module, other, (quantized.batch,))


def step(one: Subject, module: nn.Module | None = None) -> None:
    vectors = one.of(module or one.module)
    if vectors.requires_grad:
        vectors.square().sum().backward()


@cases(PLAIN, FUSED)
def test_frozen_tables_stay_and_thawed_ones_move(storage: str, name: str):
    one = subject(storage, name)
    parent = nn.Sequential(one.module)
    optimizer = torch.optim.SGD(one.module.parameters(), lr=1e-4)
    for freeze in (
        lambda on: one.module.requires_grad_(on),
        lambda on: parent.requires_grad_(on),
        lambda on: [setattr(weight, "requires_grad", on) for weight in parent.parameters()],
    ):
        for trains in (False, True, False):
            freeze(trains)
            before = copy.deepcopy(one.module.state_dict())
            optimizer.zero_grad(set_to_none=True)
            step(one)
            optimizer.step()
            after = one.module.state_dict()
            moved = [not torch.equal(before[key], after[key]) for key in before if key.endswith("weight")]
            assert any(moved) if trains else not any(moved)


@pytest.mark.parametrize("name", ["full", "mixed_dimension"])
def test_one_frozen_fused_table_stays_while_the_others_move(name: str):
    one = subject(FUSED, name)
    weights = dict(one.module.tables.named_parameters())
    frozen = next(key for key in weights if key.startswith("embedding_bags.item"))
    weights[frozen].requires_grad_(False)
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    state = {key: tensor.clone() for key, tensor in one.module.tables.optimizer_tensors().items()}
    step(one)
    moved = {key for key, weight in weights.items() if not torch.equal(weight, before[key])}
    assert frozen not in moved
    assert moved
    sums = frozen.replace(".weight", ".momentum1")
    assert torch.equal(one.module.tables.optimizer_tensors()[sums], state[sums])


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, COPIES[2], through_torch_save], ids=["deep", "pickle", "torch"])
def test_a_fused_copy_trains_on_as_the_first_one_does(name: str, duplicate: Callable[[Any], Any]):
    tables = collection("mixed_dimension", optimizer=FusedOptimizer(name, lr=0.1))
    one = Subject(tables, make_batch(tables.specs))
    step(one)
    tables.tables.set_lr(0.03)
    twin = duplicate(tables)
    for _ in range(2):
        step(one)
    frozen = copy.deepcopy(twin.state_dict())
    for _ in range(2):
        step(one, twin)
    for (key, wanted), found in zip(tables.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), key
    assert any(not torch.equal(frozen[key], found) for key, found in twin.state_dict().items())
    wanted, found = tables.tables.optimizer_tensors(), twin.tables.optimizer_tensors()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


@pytest.mark.parametrize("name", ["full", "mixed_dimension"])
def test_the_scale_of_a_loss_does_not_reach_fused_rows(name: str):
    plain, scaled, overflown = (collection(name, optimizer=FusedOptimizer("sgd", lr=0.1)) for _ in range(3))
    batch = make_batch(plain.specs)
    plain(batch).values().square().sum().backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for tables, factor in ((scaled, 1.0), (overflown, torch.inf)):
        tables.unscale_with(scaler)
        scaler.scale(tables(batch).values().square().sum() * factor).backward()
    start = collection(name)
    for wanted, found, untouched, first in zip(
        plain.weights, scaled.weights, overflown.weights, start.weights, strict=True
    ):
        torch.testing.assert_close(found, wanted)
        assert torch.equal(untouched, first)
    again = pickle.loads(pickle.dumps(scaled))
    with pytest.raises(RecembError, match="call unscale_with"):
        again(batch)
    with torch.no_grad():
        assert torch.equal(again(batch).values(), scaled(batch).values())
    again.unscale_with(None)
    again(batch)
    assert copy.deepcopy(scaled).tables._scaler is scaler


@ignores_sharded_tensors
def test_sharded_rows_in_one_process_keep_the_idioms(process_group: None):
    tables = collection_held(SHARDED)
    together = spread(nn.Sequential(tables), tables, 0, torch.device("cpu"), sharding="auto", batch_size=64)
    one = Subject(tables, make_batch(tables.specs))
    with torch.inference_mode():
        assert torch.equal(together(one.batch).values(), one.wanted)
    tables.requires_grad_(False)
    step(one)
    assert torch.equal(one.of(tables), one.wanted)
    tables.requires_grad_(True)
    first = [weight.clone() for weight in tables.weights]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    tables.unscale_with(scaler)
    scaler.scale(one.of(tables).sum()).backward()
    moved = max(float((weight - before).abs().max()) for weight, before in zip(tables.weights, first, strict=True))
    assert 0 < moved < 0.5  # one row's gradient is at most how often it was read


@ignores_sharded_tensors
def test_rows_frozen_before_they_are_sharded_stay_so(process_group: None):
    tables = collection_held(SHARDED)
    model = nn.Sequential(tables).requires_grad_(False)
    spread(model, tables, 0, torch.device("cpu"), sharding="auto", batch_size=64)
    one = Subject(tables, make_batch(tables.specs))
    step(one)
    assert torch.equal(one.of(tables), one.wanted)


def test_replicated_rows_are_copied_with_their_optimizer():
    tables = collection_held(REPLICATED)
    one = Subject(tables, make_batch(tables.specs))
    twins = [tables, copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))]
    for twin in twins:
        step(one, twin)
        twin.tables.optimizer.step()
    assert not torch.equal(one.of(tables), one.wanted)
    assert torch.equal(one.of(twins[1]), one.of(tables))
    assert torch.equal(one.of(twins[2]), one.of(tables))


def collection_held(held: str) -> CompressedEmbeddingBagCollection:
    specs = make_specs()
    optimizer = FusedOptimizer("sgd", lr=0.01)
    return CompressedEmbeddingBagCollection(
        specs, get_table("full").config(), optimizer=optimizer, held=held, device=torch.device("cpu")
    )


def test_everything_public_can_be_copied_and_pickled():
    counted = TableSpec(name="a", num_embeddings=3, embedding_dim=4, counts=torch.tensor([1, 5, 2]))
    public = [counted, FusedOptimizer("sgd"), Packing(budget="1/8", options={"seed": 1}), RecembError("a sentence")]
    public += [getattr(recemb, name) for name in recemb.__all__]
    public += [one for method in recemb.list_tables() for one in (method, method.config())]
    for one in public:
        for duplicate in COPIES:
            twin = duplicate(one)
            assert type(twin) is type(one)
            assert str(twin) == str(one)


@every_case
def test_modules_answer_what_torch_asks_of_them(storage: str, name: str):
    module = subject(storage, name).module
    seen: list[str] = []
    module.apply(lambda part: seen.append(type(part).__name__))
    assert type(module).__name__ in seen
    module.zero_grad(set_to_none=True)
    assert all(weight.grad is None for weight in module.parameters())
    assert module.train().training
    assert not module.eval().training
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    assert (trained > 0) == (storage in (PLAIN, FUSED))
    if isinstance(module, CompressedEmbeddingBagCollection) and isinstance(module.tables, FusedTables):
        held = sum(table.rows * table.dim for table in module.method.layout.tables)
        assert sum(weight.numel() for weight in module.tables.parameters()) == held
