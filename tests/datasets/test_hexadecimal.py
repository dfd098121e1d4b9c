import numpy as np
import pytest

from recemb.datasets.hexadecimal import decode_tokens

DIGITS = b"0123456789abcdefABCDEF"


def decode(tokens):
    offsets = np.cumsum([3, *(len(token) for token in tokens)]).astype(np.int32)
    return decode_tokens(offsets, np.frombuffer(b"xyz" + b"".join(tokens) + b"tail", dtype=np.uint8))


@pytest.mark.parametrize("length", range(1, 9))
def test_every_byte_in_every_place(length):
    for place in range(length):
        for byte in range(256):
            token = b"7" * place + bytes([byte]) + b"f" * (length - 1 - place)
            decoded = decode([b"12345678", token, b"abcdefAB"])
            if byte in DIGITS:
                assert decoded is not None
                assert decoded[0].tolist() == [0x12345678, int(token, 16), 0xABCDEFAB]
            else:
                assert decoded is None


def test_empty_tokens_are_missing():
    assert decode([b"ff", b"a"])[1] is None
    values, missing = decode([b"", b"12", b"", b"fedcba98", b""])
    assert missing.tolist() == [True, False, True, False, True]
    assert values[~missing].tolist() == [0x12, 0xFEDCBA98]
    assert decode([b"", b""])[1].all()


def test_nine_digits_are_too_many_even_when_the_sum_is_right():
    assert decode([b"123456789"]) is None
    assert decode([b"1234567", b"123456789"]) is None
