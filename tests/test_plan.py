"""`recemb plan` against the layouts themselves: what people and programs read, and that nothing is allocated."""

import dataclasses
import inspect
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import recemb

from recemb import RecembError, get_table, list_tables
from recemb.cli import main
from recemb.datasets import CriteoKaggleShapeConfig, Feature, PreparedDataset
from recemb.models import DCNv2Config, DLRMConfig
from recemb.plan import make_plan, sized, table_specs
from recemb.plan_text import plan_text
from recemb.tables.registry import config_to_dict

SHAPE = CriteoKaggleShapeConfig().describe_features()
BUDGET = "1/12"  # which every method can meet, narrow rows of one float an id included
METHODS = [method.name for method in list_tables()]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What `recemb plan --json` prints."""
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_full_tables_of_the_published_shape(tmp_path: Path):
    done = recemb("plan", "table=full", "--json", "dataset=criteo_kaggle_shape", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    plan = json.loads(done.stdout)
    totals = plan["totals"]
    assert (plan["embedding_dim"], plan["budget"], plan["budget_bytes"]) == (16, None, None)
    assert totals["ids"] == totals["rows"] == 33_762_577
    assert totals["trained"] == totals["full_trained"] == 540_201_232
    assert totals["bytes"] == totals["full_bytes"] == 4 * 540_201_232
    assert totals["kept"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_the_document_is_the_layout(method: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    plan = planned(capsys, f"table={method}", f"budget={BUDGET}", "dataset=criteo_kaggle_shape", "model.init_std=0.1")
    specs = table_specs(SHAPE, DLRMConfig(init_std=0.1))
    table = sized(get_table(method).config(), BUDGET, specs)
    layout = table.layout(specs)
    assert plan["table"] == config_to_dict(table)
    assert [(t["name"], t["rows"], t["width"], t["bytes"]) for t in plan["tables"]] == [
        (t.name, t.rows, t.dim, t.bytes) for t in layout.tables
    ]
    assert [(p["name"], tuple(p["shape"]), p["feature"]) for p in plan["parameters"]] == [
        (p.name, p.shape, specs[p.spec_index].name) for p in layout.parameters
    ]
    for feature, spec, lookups, dim in zip(plan["features"], specs, layout.lookups, layout.dims, strict=True):
        assert (feature["name"], feature["ids"], feature["width"]) == (spec.name, spec.num_embeddings, dim)
        assert feature["tables"] == [layout.tables[index].name for index in lookups]
        assert feature["full_bytes"] == spec.num_embeddings * 16 * 4
    totals = plan["totals"]
    assert totals["bytes"] == layout.serving_bytes <= plan["budget_bytes"] == 33_762_577 * 16 * 4 // 12
    assert totals["bytes"] == totals["rows_bytes"] + totals["parameters_bytes"] + totals["constants_bytes"]
    assert totals["constants_bytes"] == sum(plan["constants"].values())
    assert totals["kept"] == totals["bytes"] / totals["full_bytes"]
    floats = [t["rows"] * t["width"] for t in plan["tables"]]
    floats += [p["shape"][0] * p["shape"][1] for p in plan["parameters"]]
    assert totals["trained"] == sum(floats)
    # What features hold alone and what they share is everything but the constants.
    shared = sum(t["bytes"] for t in plan["tables"] if len(t["features"]) > 1)
    assert sum(f["bytes"] for f in plan["features"]) + shared == totals["bytes"] - totals["constants_bytes"]


@pytest.mark.parametrize("method", METHODS)
def test_people_get_aligned_columns_that_fit_a_terminal(method: str, capsys: pytest.CaptureFixture[str]):
    arguments = [f"table={method}", f"budget={BUDGET}"]
    plan = planned(capsys, *arguments)
    assert main(["plan", *arguments]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert max(map(len, lines)) <= 100
    assert f"table={method} for dataset=criteo_kaggle_shape" in lines[0]
    start = next(number for number, line in enumerate(lines) if line.startswith("feature "))
    body = lines[start + 1 : lines.index("", lines.index("", start) + 1)]
    ends = {len(line) for line in body if line}
    assert ends == {len(lines[start])}  # bytes stand right under "bytes"
    for table in plan["tables"]:
        (row,) = [line for line in body if f" {table['name']} " in line and line.endswith(f" {table['bytes']:,}")]
        assert row.split()[-3:] == [f"{table['rows']:,}", f"{table['width']}", f"{table['bytes']:,}"]
    for parameter in plan["parameters"]:
        (row,) = [line for line in body if f" {parameter['name']} " in line]
        assert row.split()[-2:] == ["×".join(map(str, parameter["shape"])), f"{parameter['bytes']:,}"]
    totals = plan["totals"]
    assert any(line.endswith(f" {totals['bytes']:,}") for line in body)
    assert f"{totals['trained']:,} parameters, of 540,201,232 in full tables" in said
    assert f"kept {totals['kept']:.6g}" in said
    assert f"{1 / totals['kept']:.3g}x smaller" in said


@pytest.mark.parametrize("method", [method for method in METHODS if method != "auto"])  # which chooses for each block
def test_a_budget_counts_the_bytes_of_a_precision(method: str, capsys: pytest.CaptureFixture[str]):
    arguments = [f"table={method}", f"budget={BUDGET}", "dataset=criteo_kaggle_shape"]
    plan = planned(capsys, *arguments, "precision=int8")
    totals = plan["totals"]
    assert plan["precision"] == "int8"
    assert totals["bytes"] <= plan["budget_bytes"]
    assert totals["rows_bytes"] == sum(table["bytes"] for table in plan["tables"])
    for table in plan["tables"]:
        row = {"int8": table["width"] + 4, "fp16": 2 * table["width"]}[table["held"]]
        assert table["bytes"] == table["rows"] * row
    if method != "pq":  # whose bytes are mostly codes
        assert totals["trained"] > 1.2 * planned(capsys, *arguments)["totals"]["trained"]


def test_people_are_told_of_the_precision(capsys: pytest.CaptureFixture[str]):
    arguments = ["dataset=criteo_kaggle_shape", "precision=int8"]
    assert main(["plan", "table=full", *arguments]) == 0
    text = capsys.readouterr().out
    assert "no budget, rows in int8" in text
    assert "kept 0.3125" in text
    assert main(["plan", "table=low_rank", "table.rank=2", *arguments]) == 0
    assert "rows in int8 (fp16 where rows are so narrow" in " ".join(capsys.readouterr().out.split())


def test_a_shared_table_is_printed_once_with_its_users(capsys: pytest.CaptureFixture[str]):
    plan = planned(capsys, "table=multiplexed", "table.probes=2", "budget=1/16")
    (shared,) = [table for table in plan["tables"] if len(table["features"]) > 1]
    users = [feature for feature in plan["features"] if feature["ids"] > 200]
    assert shared["features"] == [feature["name"] for feature in users]
    assert all(feature["tables"] == ["shared", "shared"] and feature["bytes"] == 0 for feature in users)
    assert main(["plan", "table=multiplexed", "table.probes=2", "budget=1/16"]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{shared['bytes']:,}") == 1
    assert said.count("shared × 2") == len(users)
    assert f"shared by {len(users)}" in said


def test_probes_of_single_features_are_given_as_help_says(capsys: pytest.CaptureFixture[str]):
    plan = planned(capsys, "table=multiplexed", "table.probes=2", "table.probes_of={C3:3}", "budget=1/16")
    assert [(f["name"], f["width"]) for f in plan["features"]][1:4] == [("C2", 16), ("C3", 24), ("C4", 16)]


def test_long_names_keep_both_ends_and_the_width(capsys: pytest.CaptureFixture[str]):
    features = [Feature(f"{letter}{'-' * 90}{letter}", 10_000_000_000) for letter in "ab"]
    plan = make_plan(features, get_table("compositional").config(), DLRMConfig(), "1/16", dataset="x" * 60)
    text = plan_text(plan)
    assert max(map(len, text.splitlines())) <= 100
    for letter in "ab":
        assert f"\n{letter}---" in text
        assert f"---{letter}  " in text
    assert ":remainder " in text


def test_no_table_is_allocated(tmp_path: Path):
    limit = 24 << 30  # of addresses, of which torch alone takes several GiB; the tables would be 515 GiB

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = recemb("plan", "table=full", "model.embedding_dim=4096", "--json", cwd=tmp_path, before=limited)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)["totals"]
    assert totals["bytes"] == 33_762_577 * 4096 * 4 > 20 * limit


def test_a_prepared_data_set_and_any_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = f"dataset.path={tmp_path}/data"
    assert main(["prepare", "dataset=synthetic", "dataset.rows=2000", path]) == 0
    capsys.readouterr()
    arguments = ["dataset=synthetic", path, "model=dcn_v2", "model.embedding_dim=8", "table=frequency", "budget=64kB"]
    plan = planned(capsys, *arguments)
    features = PreparedDataset.open(tmp_path / "data").features
    assert plan["dataset"] == "synthetic"
    assert [(f["name"], f["ids"]) for f in plan["features"]] == [(f.name, f.num_embeddings) for f in features]
    assert plan["totals"]["bytes"] <= plan["budget_bytes"] == 64_000
    # Known frequencies decide: those of one whole block would give each feature as many rows as ids.
    table = sized(get_table("frequency").config(), "64kB", specs := table_specs(features, DCNv2Config(embedding_dim=8)))
    assert [t["rows"] for t in plan["tables"]] == [t.rows for t in table.layout(specs).tables]
    assert main(["plan", "dataset=criteo", path]) == 2
    assert "holds synthetic, not criteo" in capsys.readouterr().err
    assert main(["plan", "dataset=synthetic", path, "dataset.vocabulary=none"]) == 2
    assert "dataset.vocabulary=none was asked for" in capsys.readouterr().err


def test_what_a_feature_is_reaches_the_tables():
    features = [Feature("bag", 10, max_length=None), Feature("raw", 20, raw=True)]
    bag, raw = table_specs(features, DLRMConfig(embedding_dim=4, init_std=0.5))
    assert (bag.max_length, bag.raw_ids, raw.max_length, raw.raw_ids) == (None, False, 1, True)
    assert (bag.embedding_dim, bag.init_std, bag.counts) == (4, 0.5, None)
    with pytest.raises(RecembError, match="table=full needs ids from a vocabulary"):
        make_plan(features, get_table("full").config(), DLRMConfig())
    assert make_plan(features, get_table("multiplexed").config(), DLRMConfig()).totals.ids == 30


def test_an_option_that_is_no_size_may_stand_beside_a_budget():
    specs = table_specs([Feature("a", 5000)], DLRMConfig())
    config = get_table("mixed_dimension").config(alpha=0.25)
    assert sized(config, "1/4", specs).scale is not None
    with pytest.raises(RecembError, match=r"budget=1/4 and table.scale=0.5 both say how large"):
        sized(get_table("mixed_dimension").config(scale=0.5), "1/4", specs)


def test_every_key_of_the_document_is_described():
    plan = make_plan(SHAPE, get_table("low_rank").config(), DLRMConfig(), BUDGET)
    for part in (plan, plan.features[0], plan.tables[0], plan.parameters[0], plan.totals):
        for field in dataclasses.fields(part):
            assert f"\n    {field.name}: " in (inspect.getdoc(type(part)) or ""), field.name


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path):
    command = [sys.executable, "-m", "recemb", "plan", "table=compositional", "table.collisions=4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


def test_help_tells_of_it(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "recemb plan table=" in capsys.readouterr().out
    assert main(["plan", "--help"]) == 0
    said = capsys.readouterr().out
    for wanted in (
        "budget=null",
        "model.embedding_dim=16",
        "dataset=criteo_kaggle_shape",
        "table.threshold=",
        "--json",
    ):
        assert wanted in said
    assert "trainer.sharding=" in said  # what a plan for several processes depends on, and no more of training
    assert "trainer.lr=" not in said
    assert "seed=" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table=hashin"], "there is no table 'hashin'. Known: auto, compositional, "),
        (["dataset=nope"], "there is no dataset 'nope'. Known: avazu, criteo, criteo_kaggle_shape, "),
        (
            ["table.rowz=3"],
            "there is no option 'table.rowz'. Did you mean table.rows? `recemb plan --help` lists them.",
        ),
        (["table=full", "table.rows=3"], "the chosen table= has no option 'table.rows'"),
        (["seed=3"], "there is no option 'seed'. `recemb plan --help` lists them."),
        (["budget=lots"], "budget=lots is not a budget"),
        (["table=hashing", "budget=100B"], "the least possible is "),
        (["table=hashing", "table.rows=5", "budget=1/2"], "both say how large the tables are"),
        (
            ["dataset=synthetic"],
            "run recemb prepare dataset=synthetic to make it, or plan for dataset=criteo_kaggle_sh",
        ),
        (["dataset.vocabulary=none", "table=low_rank"], "table=low_rank needs ids from a vocabulary"),
        (["dataset.path=somewhere"], "lies in no folder; name the data set at somewhere"),
        (["table=multiplexed", "table.rows=100000000000000000000"], "it must be at least 1 and below 2**63"),
        (["table=full,hashing"], "has several values: recemb plan takes one."),
        (["-m", "table=full,hashing"], "recemb plan lays out one method at a time; leave -m out"),
        (["model.embedding_dim=0"], "model.embedding_dim=0 must lie between"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_mistake_is_one_sentence_and_no_document(
    form: list[str],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments, *form]) == 2
    out, error = capsys.readouterr()
    assert said in error
    assert error.startswith("recemb: ")
    assert "\n" not in error.strip()
    assert out == ""


@pytest.mark.parametrize("budget", ["1/4", "1/16"])
def test_every_method_can_be_planned_for_the_published_shape(budget: str):
    """By frequencies that are assumed, and said to be."""
    for method in list_tables():
        if (method.name, budget) == ("low_rank", "1/16"):  # one number for each id is a little more
            continue
        plan = make_plan(SHAPE, method.config(), DLRMConfig(), budget)
        assert plan.totals.kept <= (0.25 if budget == "1/4" else 0.0625)
        assert plan.frequencies == "assumed, a Zipf law of exponent 1.15"
        assert "\nfrequencies: assumed, a Zipf law of exponent 1.15\n" in plan_text(plan)


def test_sizes_that_differ_are_not_written_alike():
    with pytest.raises(RecembError) as caught:
        make_plan(SHAPE, get_table("low_rank").config(), DLRMConfig(), "1/16")
    asked, least = re.findall(r"([\d,]+) bytes", str(caught.value))
    assert asked != least
    assert "MiB" not in str(caught.value)
    with pytest.raises(RecembError, match=r"32.2 MiB \(33,762,577 bytes\): .* 135,051,972 bytes \(129 MiB\)"):
        make_plan(SHAPE, get_table("low_rank").config(), DLRMConfig(), "1/64")


def test_blocks_of_unknown_frequencies_are_whole_features():
    features = [Feature(f"C{number}", 50_000) for number in range(3)]
    with pytest.raises(RecembError, match=r"whose blocks are whole features here \(frequencies unknown"):
        make_plan(features, get_table("mixed_dimension").config(), DLRMConfig(), "1/64")
