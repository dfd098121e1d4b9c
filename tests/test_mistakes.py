"""What a person has done that Hydra will not take, in one sentence."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from recemb.mistakes import in_one_sentence


@pytest.mark.parametrize("value", ["usér", "ключ", "a="])
def test_what_needs_quotes_is_said(value: str):
    given = f"trainer.projector={value}"
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([given])
    said = in_one_sentence(caught.value, "train")
    assert f"{given!r} cannot be read" in said
    assert "a value with spaces, commas, = or letters beyond ASCII needs quotes of its own" in said
