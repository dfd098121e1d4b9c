"""Which process holds what: plans that nobody has to run, and starts that do not depend on them."""

import json
from pathlib import Path

import pytest
import torch
from command_line import recemb, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_samples import make_specs

from recemb import RecembError, TableSpec, get_table
from recemb.config import PlanConfig
from recemb.tables import initial
from recemb.tables.base import PhysicalTable, total_full_bytes
from recemb.tables.full import FullConfig
from recemb.tables.sharded import ShardedTables
from recemb.tables.storage import FusedOptimizer
from recemb.training import TrainerConfig
from recemb.training.sharding import make_plan, planned, shards_of

KINDS = ["auto", "table_wise", "row_wise", "column_wise"]


def host(dims: list[int], optimizer: str = "adagrad") -> ShardedTables:
    tables = [PhysicalTable(f"t{number}", 10 + number, dim, 0.01) for number, dim in enumerate(dims)]
    return ShardedTables(tables, list(range(len(tables))), FusedOptimizer(optimizer), by_value=True)


@settings(max_examples=60, deadline=None)
@given(
    dims=st.lists(st.integers(1, 70), min_size=1, max_size=4), processes=st.integers(1, 5), kind=st.sampled_from(KINDS)
)
def test_shards_cover_each_table_once_in_widths_that_kernels_take(dims: list[int], processes: int, kind: str):
    tables = host(dims)
    shards = shards_of(make_plan(tables, processes, "cpu", kind, batch_size=64, memory=1 << 40))
    for shard in shards:
        assert shard.kernel == "fused"  # torchrec ignores the optimizer of rows with any other
        assert shard.width % 4 == 0
        assert 0 <= shard.process < processes
    assert sum(shard.rows * shard.width * 4 for shard in shards) == tables.stored_bytes()


def test_rows_on_a_gpu_may_lie_in_the_host_s_memory():
    tables = host([16, 16], "rowwise_adagrad")
    plan = make_plan(tables, 2, "cuda", "row_wise", batch_size=64, cache_share=0.25, memory=1 << 30)
    assert {shard.kernel for shard in shards_of(plan)} == {"fused_uvm_caching"}
    (of_module,) = plan.plan.values()
    assert {one.cache_params.load_factor for one in of_module.values()} == {0.25}


def test_tables_that_do_not_fit_are_told_with_what_they_need():
    specs = [TableSpec(name="large", num_embeddings=10_000_000, embedding_dim=64)]
    trainer = TrainerConfig(sharding="row_wise")
    assert planned(specs, FullConfig(), trainer, 4, "1GiB")["bytes_per_process"] == [650_000_000] * 4
    with pytest.raises(
        RecembError, match=r"do not fit: .* take 2.42 GiB, and 2 processes have 1 GiB each.*more processes"
    ):
        planned(specs, FullConfig(), trainer, 2, "1GiB")
    with pytest.raises(
        RecembError, match=r"every process would hold all rows and accumulators, 2\.42 GiB, and has 1 GiB"
    ):
        planned(specs, FullConfig(), TrainerConfig(sharding="data_parallel"), 4, "1GiB")


@pytest.mark.parametrize(("optimizer", "per_row"), [("rowwise_adagrad", 17 * 4), ("adagrad", 32 * 4), ("sgd", 16 * 4)])
def test_planned_bytes_count_accumulators(optimizer: str, per_row: int):
    specs = make_specs()
    found = planned(specs, FullConfig(), TrainerConfig(sharding="auto", table_optimizer=optimizer), 3)
    assert sum(found["bytes_per_process"]) == sum(spec.num_embeddings for spec in specs) * per_row
    assert set(found["tables"]) == {spec.name for spec in specs}


def test_a_plan_of_a_method_that_learns_is_that_of_its_first_stage():
    specs = make_specs()
    config = get_table("optembed").config().fit(specs, total_full_bytes(specs) // 8)
    trainer = TrainerConfig(sharding="row_wise")
    assert planned(specs, config, trainer, 2) == planned(specs, FullConfig(), trainer, 2)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rows=st.integers(1, 50), width=st.integers(1, 9))
def test_a_part_of_a_table_starts_as_it_does_in_the_whole(data: st.DataObject, rows: int, width: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "_BLOCK_ROWS", 7)
        whole = torch.empty(rows, width)
        initial.init_uniform_(whole, 0.1, "name", 5)
        first, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
        n, d = data.draw(st.integers(1, rows - first)), data.draw(st.integers(1, width - column))
        part = torch.full((n, d), torch.nan)
        initial.init_uniform_(part, 0.1, "name", 5, size=(rows, width), at=(first, column))
    assert torch.equal(part, whole[first : first + n, column : column + d])
    assert len(whole.unique()) > rows * width * 0.99  # no block repeats another


def test_small_tables_start_as_one_block():
    one, two = torch.empty(100, 4), torch.empty(100, 4)
    initial.init_uniform_(one, 0.1, "name", 5)
    initial.init_uniform_(two, 0.1, "name", 6)
    assert not torch.equal(one, two)
    assert float(one.std()) == pytest.approx(0.1, rel=0.1)


def test_plan_on_the_command_line(tmp_path: Path):
    done = recemb("plan", "table=hashing", "budget=1/8", "processes=2", "memory=80GiB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sharding auto over 2 processes, which hold" in done.stdout
    done = recemb("plan", "processes=2", "trainer.sharding=row_wise", "--json", cwd=tmp_path)
    sharding = json.loads(done.stdout)["sharding"]
    assert (sharding["asked"], sharding["processes"], len(sharding["tables"])) == ("row_wise", 2, 26)
    done = recemb("plan", "table=full", "processes=2", "memory=1GiB", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "do not fit" in done.stderr


def test_a_plan_for_several_processes_shares():
    assert PlanConfig(processes=2).trainer.sharding == "auto"
    with pytest.raises(RecembError, match="processes=0 is too small"):
        PlanConfig(processes=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "2 processes were started, and trainer.sharding=none is for one; pass trainer.sharding=auto."),
        (["trainer.sharding=column_wise"], "trainer.sharding=column_wise is not offered here"),
        (
            ["trainer.sharding=auto", "dataset.path=nowhere", "dataset=criteo"],
            "There is no prepared data set at nowhere",
        ),
    ],
)
def test_a_mistake_is_told_and_ends_all_processes(tmp_path: Path, options: list[str], sentence: str):
    small = [] if "dataset=criteo" in options else ["dataset.rows=2000", f"dataset.path={tmp_path}/rows"]
    done = run_ranks(2, "train", *options, *small, cwd=tmp_path)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "recemb (process" in done.stderr
    assert 'File "' not in done.stderr.split("ChildFailedError")[0].split("torch/distributed/elastic")[0]
