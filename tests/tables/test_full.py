"""The full table and its narrower forms."""

import pytest
import torch
from tables_samples import make_batch, make_specs

from recemb import CompressedEmbeddingBagCollection, FusedOptimizer, RecembError
from recemb.tables.base import total_full_bytes
from recemb.tables.full import FullConfig


def test_it_is_an_embedding_bag():
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, FullConfig())
    batch = make_batch(specs)
    out = tables(batch)
    for spec in specs:
        weight = tables.state_dict()[f"tables.embedding_bags.{spec.name}.weight"]
        ids, offsets = batch[spec.name].values(), batch[spec.name].offsets()
        expected = torch.nn.functional.embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)
        torch.testing.assert_close(out[spec.name], expected)


@pytest.mark.parametrize(("share", "width"), [(1.0, 16), (0.5, 8), (0.25, 4), (1 / 8, 2), (1 / 16, 1)])
def test_a_share_of_the_bytes_is_that_share_of_the_width(share: float, width: int):
    specs = make_specs()
    config = FullConfig().fit(specs, int(total_full_bytes(specs) * share))
    assert config.width == width
    tables = CompressedEmbeddingBagCollection(specs, config)
    assert tables.kept == share
    assert {one.embedding_dim for one in tables.embedding_bag_configs()} == {width}


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6])
def test_widths_that_kernels_do_not_take_are_exact_in_fused_tables(width: int):
    specs = make_specs()
    tables = CompressedEmbeddingBagCollection(specs, FullConfig(width=width), optimizer=FusedOptimizer())
    assert tables.method.layout.serving_bytes == sum(spec.num_embeddings for spec in specs) * width * 4
    plain = CompressedEmbeddingBagCollection(specs, FullConfig(width=width))
    plain.load_state_dict(tables.state_dict())
    batch = make_batch(specs)
    torch.testing.assert_close(tables(batch).values(), plain(batch).values())


def test_less_than_one_float_an_id_is_impossible():
    specs = make_specs()
    ids = sum(spec.num_embeddings for spec in specs)
    with pytest.raises(RecembError, match=f"least possible is {ids * 4:,} bytes"):
        FullConfig().fit(specs, ids * 4 - 1)
