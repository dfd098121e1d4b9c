"""Says in one sentence what a person has done that Hydra, OmegaConf or the system will not take."""

import dataclasses
import re
from difflib import get_close_matches

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from recemb import help as pages
from recemb import synonyms
from recemb.config import PlanConfig, PrepareConfig, RunConfig
from recemb.files import reason_of
from recemb.options import RecembError

_SCHEMAS: dict[str, type] = {"prepare": PrepareConfig, "plan": PlanConfig, "train": RunConfig}


def in_one_sentence(error: Exception, verb: str) -> str:
    """Say an error in one sentence.

    Args:
        error: of recemb, Hydra, OmegaConf or the system.
        verb: what was asked for on the command line.
    """
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _hydra_in_one_sentence(error, verb)
    if isinstance(error, OSError):
        reason = reason_of(error)
        return f"{error.filename}: {reason}." if error.filename else f"{reason}."
    return str(error)


def _hydra_in_one_sentence(error: Exception, verb: str) -> str:
    """Say in one sentence what Hydra and OmegaConf say over several lines and causes."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, RecembError):
            return str(cause)
    text = str(error)
    if "experiment}-${table" in text:
        return "experiment= takes the name of one experiment, not a list."
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if unknown := re.search(r"Could not override '([^']+)'", text):
        known_keys = _known_keys(verb)
        if unknown[1] in known_keys:
            group = unknown[1].split(".")[0]
            return f"the chosen {group}= has no option {unknown[1]!r}; `recemb {verb} --help` says which has it."
        foreign = any(unknown[1] in _known_keys(other) for other in _SCHEMAS)
        close = synonyms.option_meant(unknown[1]) or ""
        if close not in known_keys and not close.startswith("hydra."):
            close = "" if foreign else "".join(get_close_matches(unknown[1], known_keys, n=1, cutoff=0.5))
        hint = f" Did you mean {close}?" if close else ""
        return f"there is no option {unknown[1]!r}.{hint} `recemb {verb} --help` lists them."
    if missing := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        known = ", ".join(re.findall(r"^\t(\S+)$", text, re.MULTILINE))
        meant = synonyms.value_meant(missing[1], missing[2])
        hint = f" Did you mean {meant}?" if meant else ""
        return f"there is no {missing[1]} {missing[2]!r}.{hint}{f' Known: {known}.' if known else ''}"
    if text.startswith("Error merging override"):
        why = str(chain[1]).splitlines()[0] if len(chain) > 1 else "the value does not fit"
        return f"{text.removeprefix('Error merging override').strip()}: {why}."
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read: options are given as name=value; a value with spaces, commas, = or "
            "letters beyond ASCII needs quotes of its own."
        )
    if text.startswith("Ambiguous value"):
        advice = "sweep with -m" if verb == "train" else f"recemb {verb} takes one"
        return f"{lines[0].removeprefix('Ambiguous value for argument').strip()} has several values: {advice}."
    return " ".join(lines[:2])


def _known_keys(verb: str) -> list[str]:
    """List every option of a verb, whatever is chosen."""
    text = pages.train_help() + pages.prepare_help()
    fields = {field.name for field in dataclasses.fields(_SCHEMAS[verb])}
    return [key for key in re.findall(r"^  ([a-z_.]+)=", text, re.MULTILINE) if key.split(".")[0] in fields]
