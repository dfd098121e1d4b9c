"""What a person has done that Hydra will not take, in one sentence."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from recemb import list_tables, synonyms
from recemb.cli import _VERBS, main
from recemb.config import GROUPS
from recemb.mistakes import _known_keys, in_one_sentence


@pytest.mark.parametrize("value", ["usér", "ключ", "a="])
def test_what_needs_quotes_is_said(value: str):
    given = f"trainer.projector={value}"
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([given])
    said = in_one_sentence(caught.value, "train")
    assert f"{given!r} cannot be read" in said
    assert "a value with spaces, commas, = or letters beyond ASCII needs quotes of its own" in said


EVERY = [(meant, name) for meant, names in synonyms.OPTIONS.items() for name in names]


def test_a_synonym_stands_for_what_there_is():
    """And no name stands for two things, or is an option itself."""
    keys = {key for verb in ("train", "prepare", "plan") for key in _known_keys(verb)}
    for meant, name in EVERY:
        assert meant in keys or meant in ("hydra.run.dir", "hydra.launcher.jobs"), meant
        assert name not in keys
    for table in (synonyms.OPTIONS, synonyms.VERBS, *synonyms.VALUES.values()):
        names = [name for others in table.values() for name in others]
        assert len(names) == len(set(names))
    assert set(synonyms.VERBS) <= set(_VERBS)
    assert not {name for others in synonyms.VERBS.values() for name in others} & set(_VERBS)
    for group, table in synonyms.VALUES.items():
        known = {method.name for method in list_tables()} if group == "table" else set(GROUPS[group])
        assert set(table) <= known
        assert not {name for others in table.values() for name in others} & known


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "trainer.learning_rate=0.1"], "trainer.lr"), (["train", "learning_rate=0.1"], "trainer.lr"),
        (["train", "trainer.num_epochs=3"], "trainer.epochs"),
        (["train", "model.embedding_size=3"], "model.embedding_dim"),
        (["train", "batchsize=3"], "trainer.batch_size"), (["plan", "compression_ratio=3"], "budget"),
        (["train", "table=qr"], "compositional"), (["plan", "table=unified"], "multiplexed"),
        (["train", "model=dcnv2"], "dcn_v2"), (["train", "dataset=csv"], "tabular"), (["fit"], "train"),
        (["evaluate", "runs"], "report"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)  # fmt: skip
def test_what_other_libraries_call_it_is_understood(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err
