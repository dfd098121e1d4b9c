"""Ways to damage a file, whatever it holds; each keeps its name."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("IT_RAN",)


def _bomb() -> bytes:
    """10 MiB of zeros in 10 KiB."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../escaped", bytes(10 << 20))
    return content.getvalue()


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1] if len(content) > 1 else b"",
    "pickle": lambda _: pickle.dumps(Code()),
    "zip bomb": lambda _: _bomb(),
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda _: bytes(range(256)) * 4,
    "wrong magic": lambda content: b"XXXXXXXX" + content[8:],
    "doubled": lambda content: content + content,
    "latin": lambda _: "größe: ñ".encode("latin-1"),
}
JSON_WAYS: dict[str, Callable[[bytes], bytes]] = {
    **WAYS,
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "a number": lambda _: b"1e999",
    "an empty mapping": lambda _: b"{}",
    "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "NaN": lambda content: content.replace(b": 1", b": NaN", 1),
}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
