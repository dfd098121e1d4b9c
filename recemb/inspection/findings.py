"""What an inspection comes to, in a few sentences."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from recemb.budget import format_bytes
from recemb.inspection.records import DatasetFacts, FeatureFacts
from recemb.inspection.sharing import FeatureSharing, PlanSharing
from recemb.report.words import percent, plural

RARE = 10
"""Values seen fewer times than this are called rare in sentences and tables."""

_NAMED = 3
_Feature = TypeVar("_Feature", FeatureFacts, FeatureSharing)


def findings(facts: DatasetFacts) -> list[str]:
    """Say which features hold the bytes, what their tails carry, what is unseen, what drifts, what tells the label."""
    return [*_bytes(facts), *_tails(facts), *_unseen(facts), *_drift(facts), *_label(facts), *_notes(facts)]


def sharing_findings(sharing: PlanSharing) -> list[str]:
    """Say whose cells share rows, how many updates are foreign, and which held-out cells have their own vector."""
    total, lines = sharing.total, []
    if total.collides:
        lines.append(
            f"{percent(total.collides)} of the training cells have an id that shares a row with another one, and "
            f"{percent(total.foreign_updates)} of the updates to a cell's rows come from other ids; most in "
            f"{_most(sharing.features, lambda one: one.foreign_updates)}."
        )
    else:
        lines.append("No two ids share a row.")
    if total.without_row:
        lines.append(f"{percent(total.without_row)} of the training cells have an id without a row, and read zeros.")
    own = {"train": "training", "valid": "validation", "test": "test"}
    parts = [
        f"{percent(share)} of {own[split]} cells" for split, share in total.own_vector.items() if share is not None
    ]
    lines.append(
        f"An id with a vector of its own, which no other id of the feature has, is predicted in {_listed(parts)}; "
        "unseen values have none."
    )
    if sharing.note:
        lines.append(f"{sharing.note[0].upper()}{sharing.note[1:]}.")
    return lines


def _bytes(facts: DatasetFacts) -> Iterator[str]:
    largest, held, half = facts.largest_first, 0, 0
    while held * 2 < facts.full_bytes:
        held += largest[half].full_bytes
        half += 1
    shares = [f"{one.name} ({percent(one.full_bytes / facts.full_bytes)})" for one in largest[:_NAMED]]
    of = plural(len(largest), "feature")
    yield (
        f"Full fp32 tables {facts.embedding_dim} wide take {format_bytes(facts.full_bytes)}; half of that is in "
        f"{half} of {of}, most in {_listed(shares)}."
    )


def _tails(facts: DatasetFacts) -> Iterator[str]:
    ids = sum(one.ids for one in facts.features)
    rare = sum(one.tail(RARE).ids * (one.ids - 1) for one in facts.features)
    known = [one for one in facts.features if one.tail(RARE).cells is not None]
    if not known:
        return
    cells = sum((one.tail(RARE).cells or 0.0) * one.cells for one in known) / sum(one.cells for one in known)
    holding = sum(next(point.ids for point in one.ids_for if point.cells == 0.9) for one in facts.features)
    most = _most(known, lambda one: one.tail(RARE).cells)
    without_id = ", with the values too rare for an id," if any(one.unseen["train"] for one in known) else ""
    yield (
        f"{percent(rare / ids)} of all ids were seen fewer than {RARE} times; they carry{without_id} {percent(cells)} "
        f"of the training cells{f', most in {most}' if cells else ''}; {holding:,} of {ids:,} ids hold 90 % of the "
        "cells of each feature."
    )


def _unseen(facts: DatasetFacts) -> Iterator[str]:
    shares = [share for one in facts.features if (share := one.unseen["test"]) is not None]
    if not shares:
        return
    if not any(shares):
        yield "No test cell holds a value without an id."
        return
    mean = sum(shares) / len(shares)
    yield (
        f"On average over features {percent(mean)} of the test cells hold a value without an id, most in "
        f"{_most(facts.features, lambda one: one.unseen['test'])}."
    )


def _drift(facts: DatasetFacts) -> Iterator[str]:
    known = [one for one in facts.features if one.drift is not None]
    if not known:
        return
    drifting = [one for one in known if one.drift is not None and one.drift.is_noticeable]
    if not drifting:
        yield (
            "From training to test, no feature's ids drift, beyond what finite rows make up, by more than 0.01 bits "
            "and more than three standard deviations of random splits."
        )
        return
    worst = max(drifting, key=lambda one: one.drift.excess if one.drift else 0.0)
    drift = worst.drift
    assert drift is not None
    yield (
        f"From training to test, the ids of {len(drifting)} of {plural(len(known), 'feature')} drift; most those of "
        f"{worst.name}: a divergence of {drift.bits:.3f} bits, where random splits have {drift.expected:.3f}, and a "
        f"population stability index of {drift.psi:.3f} (above 0.25 counts as much)."
    )


def _label(facts: DatasetFacts) -> Iterator[str]:
    known = [one for one in facts.features if one.label.logloss_gain is not None]
    if not known:
        return
    telling = [one for one in known if tells_label(one)]
    if not telling:
        yield "No feature tells anything about the label on its own."
        return
    best = sorted(telling, key=lambda one: -(one.label.logloss_gain or 0.0))[:_NAMED]
    gains = [f"{one.name} ({one.label.logloss_gain:.4f} ± {one.label.standard_error:.4f})" for one in best]
    nothing = [one.name for one in known if not tells_label(one)]
    rest = f"; {_listed(nothing, most=6)} nothing that can be seen" if nothing else ""
    yield (
        f"On its own, most is told about the label by {_listed(gains)}, in nats of validation logloss below that of "
        f"the overall rate, {best[0].label.base_logloss:.4f}{rest}."
    )


def tells_label(feature: FeatureFacts) -> bool:
    """Whether the feature's gain in logloss is more than two standard errors."""
    label = feature.label
    return label.logloss_gain is not None and label.logloss_gain > 2 * (label.standard_error or 0.0)


def _notes(facts: DatasetFacts) -> Iterator[str]:
    for note in facts.notes:
        yield f"{note[0].upper()}{note[1:]}."


def _most(features: Sequence[_Feature], measure: Callable[[_Feature], float | None]) -> str:
    """Name those with the largest share."""
    largest = sorted(features, key=lambda one: -(measure(one) or 0.0))[:_NAMED]
    return _listed([f"{one.name} ({percent(measure(one))})" for one in largest if measure(one)])


def _listed(names: Sequence[str], most: int = 100) -> str:
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"
