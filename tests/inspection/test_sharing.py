from collections import Counter

import numpy as np
import pytest
import torch
from inspection_samples import draw_rows, prepared
from tables_samples import VARIANTS

from recemb.inspection.facts import inspect_dataset
from recemb.inspection.sharing import share_rows
from recemb.inspection.traffic import Traffic
from recemb.models import DLRMConfig
from recemb.options import RecembError
from recemb.plan import sized, table_specs
from recemb.tables.registry import create_table, get_table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("data") / "out", *draw_rows(), min_count=2)


def asked(dataset, name, budget, **options):
    specs = table_specs(dataset.features, DLRMConfig())
    return sized(get_table(name).config(**options), budget, specs), specs


def by_hand(config, specs, dataset):
    """Go over ids one by one, with sets and dicts."""
    method, reads, weights = create_table(config, specs), {}, {}
    layout = method.layout
    for index, spec in enumerate(specs):
        first = sum(map(len, layout.lookups[:index]))
        for number in range(spec.num_embeddings):
            one = torch.tensor([number])
            if layout.alternatives:
                table, row = method.route(one, torch.tensor([index]))
                places = [(int(table), int(row))]
            else:
                places = [
                    (table, int(method.remap(one, torch.tensor([first + place]))))
                    for place, table in enumerate(layout.lookups[index])
                ]
            reads[index, number] = tuple(place if place[1] >= 0 else None for place in places)
            weights[index, number] = int(spec.counts[number])
    readers, traffic = Counter(), Counter()
    for one, places in reads.items():
        for place in set(places) - {None}:
            readers[place] += 1
            traffic[place] += weights[one]
    vectors = Counter((index, places) for (index, _), places in reads.items())
    total = sum(weights.values())
    found = Counter()
    rows_of_cells = 0
    for one, places in reads.items():
        weight, there = weights[one], [place for place in places if place is not None]
        if not there:
            found["without_row"] += weight
            continue
        rows_of_cells += weight
        found["collides"] += weight * any(readers[place] > 1 for place in there)
        found["collides_everywhere"] += weight * all(readers[place] > 1 for place in there)
        found["own_vector"] += weight * (vectors[one[0], places] == 1)
        found["foreign"] += weight * np.mean([1 - weight / max(traffic[place], 1) for place in there])
    shares = {name: found[name] / total for name in ("without_row", "collides", "collides_everywhere", "own_vector")}
    return shares | {"foreign_updates": found["foreign"] / rows_of_cells}, readers


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_every_method_as_by_hand(dataset, variant):
    try:
        config, specs = asked(dataset, variant.method, "1/3", **variant.options)
    except RecembError:
        config, specs = asked(dataset, variant.method, "9/10", **variant.options)
    found = share_rows(config, specs, Traffic(dataset))
    wanted, readers = by_hand(config, specs, dataset)
    for name in ("without_row", "collides", "collides_everywhere", "foreign_updates"):
        assert getattr(found.total, name) == pytest.approx(wanted[name], abs=1e-12), name
    assert found.total.own_vector["train"] == pytest.approx(wanted["own_vector"])
    occupancy = found.occupancy
    assert occupancy.rows - occupancy.unused == len(readers)
    assert occupancy.most == max(readers.values())
    assert occupancy.mean == pytest.approx(np.mean([*readers.values()]))
    assert occupancy.unused + sum(entry["rows"] for entry in occupancy.histogram) == occupancy.rows
    for entry in occupancy.histogram:
        high = entry["at_most"]
        assert entry["rows"] == sum(high // 2 < times <= high for times in readers.values())
    for sharing in (found.total, *found.features):
        assert 0 <= sharing.collides_everywhere <= sharing.collides <= 1
        assert sharing.without_row + sharing.collides <= 1 + 1e-12
        assert sharing.own_row["train"] <= sharing.own_vector["train"] + 1e-12
    learns = variant.method in ("optembed", "pep", "magnitude", "pq")
    assert (found.note is not None) == learns


def test_nothing_is_shared_in_full_tables(dataset):
    config, specs = asked(dataset, "full", None)
    found = share_rows(config, specs, Traffic(dataset))
    facts = inspect_dataset(dataset)
    for sharing in (found.total, *found.features):
        assert sharing.collides == sharing.collides_everywhere == sharing.foreign_updates == sharing.without_row == 0
        assert sharing.own_vector["train"] == 1
    for sharing, feature in zip(found.features, facts.features, strict=True):
        for split in ("valid", "test"):
            assert sharing.own_vector[split] == pytest.approx(1 - feature.unseen[split])
    assert found.occupancy.histogram == [{"at_most": 1, "rows": sum(spec.num_embeddings for spec in specs)}]


def test_a_method_that_learns_drops_ids(dataset):
    config, specs = asked(dataset, "magnitude", "1/8")
    found = share_rows(config, specs, Traffic(dataset))
    assert found.total.without_row > 0
    assert found.total.collides == 0
    assert "training decides" in found.note


def test_little_memory_changes_nothing(dataset):
    config, specs = asked(dataset, "multiplexed", "1/4", probes=2)
    assert share_rows(config, specs, Traffic(dataset)) == share_rows(config, specs, Traffic(dataset, memory_bytes=1))


def test_raw_ids(tmp_path):
    dataset = prepared(tmp_path / "raw", *draw_rows(), vocabulary="none")
    _, small, _ = Traffic(dataset)
    column = draw_rows()[1]["small"]
    first, last = dataset.num_rows("train"), -dataset.num_rows("test")
    assert dict(zip(small.values[1:], small.train[1:], strict=True)) == Counter(column[:first].tolist())
    assert dict(zip(small.values[1:], small.held_out["test"][1:], strict=True)) == {
        value: int((column[last:] == value).sum()) for value in small.values[1:]
    }
    config, specs = asked(dataset, "hashing", "1/4")
    found = share_rows(config, specs, Traffic(dataset))
    (wide, *_) = found.features
    values = np.unique(draw_rows()[1]["wide"][: dataset.num_rows("train")])
    rows = create_table(config, specs).remap(torch.from_numpy(values), torch.zeros(len(values), dtype=torch.int64))
    readers = Counter(rows.tolist())
    assert wide.occupancy.most == max(readers.values())
    assert wide.occupancy.mean == pytest.approx(len(values) / len(readers))
    assert 0 < wide.foreign_updates < 1
    with pytest.raises(RecembError, match="needs ids from a vocabulary"):
        share_rows(get_table("full").config(), specs, Traffic(dataset))
