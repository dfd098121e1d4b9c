"""Checks at import that torch, FBGEMM and torchrec belong together, and says one clear sentence where they do not."""

from importlib.metadata import PackageNotFoundError, version

# FBGEMM's operators are compiled against one torch, and torchrec calls one FBGEMM.
_PARTNERS = {"2.13": ("1.8", "1.8"), "2.12": ("1.7", "1.7"), "2.11": ("1.6", "1.6")}


def check_platform() -> None:
    """Raise ImportError, in one sentence, where the installed packages cannot work together."""
    found = {name: _minor(name) for name in ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec")}
    torch, fbgemm = found["torch"], found["fbgemm-gpu"] or found["fbgemm-gpu-cpu"]
    if torch not in _PARTNERS:
        raise ImportError(f"recemb works with torch {', '.join(_PARTNERS)}, and found {torch}; run `make setup`.")
    wanted_fbgemm, wanted_torchrec = _PARTNERS[torch]
    if found["fbgemm-gpu"] and found["fbgemm-gpu-cpu"]:
        raise ImportError("both fbgemm-gpu and fbgemm-gpu-cpu are installed and overwrite each other; uninstall one.")
    if fbgemm != wanted_fbgemm or found["torchrec"] != wanted_torchrec:
        raise ImportError(
            f"torch {torch} needs FBGEMM {wanted_fbgemm} and torchrec {wanted_torchrec}, and found FBGEMM {fbgemm} and "
            f"torchrec {found['torchrec']}; run `make setup`, or install that pair (torchrec with --no-deps)."
        )


def _minor(package: str) -> str | None:
    try:
        return ".".join(version(package).split(".")[:2])
    except PackageNotFoundError:
        return None
