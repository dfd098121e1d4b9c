"""An evolutionary search for one number a feature, such as the widths of its vectors.

Lyu, Tang, Zhu, Guo, Zhang, Liu, Cai & Liu, "OptEmbed: Learning Optimal Embedding Table for Click-through Rate
Prediction", CIKM 2022, arXiv 2208.04482: the best candidates so far are parents; of the children of a
round some are mutants of one parent and some cross two.

Differs from the paper: a child is always a candidate that was not tried before, so that no evaluation is wasted, and
parents are crossed feature by feature instead of at one point, since the order of features means nothing. A search that
was cut short can go on from the fitness values it had come to.
"""

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

from recemb.options import RecembError

Candidate = tuple[int, ...]

_TRIES = 100  # at a child that is new, before any new candidate takes its place


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has come to.

    Attributes:
        best: the fittest candidate, the first of several.
        fitness: that of the best; -inf while no candidate was possible.
        evaluated: how many candidates were tried, each of them once; those whose fitness was known count too.
        history: after each round, how many were tried so far and the best fitness among them.
    """

    best: Candidate
    fitness: float
    evaluated: int
    history: list[tuple[int, float]]


def evolve(
    evaluate: Callable[[Candidate], float],
    most: Sequence[int],
    *,
    rounds: int = 30,
    mutants: int = 10,
    crossovers: int = 10,
    parents: int = 15,
    mutation: float = 0.1,
    start: Sequence[Candidate] = (),
    seed: int = 0,
    known: Mapping[Candidate, float] | None = None,
    on_round: Callable[[int, Found], None] | None = None,
) -> Found:
    """Search for the fittest candidate: a number from 1 to `most` for each of F features.

    Args:
        evaluate: gives the fitness of a candidate, more is better; -inf or NaN where it is impossible.
        most: the F largest numbers, each 1 or more.
        rounds: how often children are made; fewer where every candidate there is was tried before.
        mutants: children a round that differ from one parent in some numbers.
        crossovers: children a round that have each number from either of two parents.
        parents: how many of the best candidates so far have children; impossible ones only if there are no others.
        mutation: probability that a number of a mutant is drawn anew.
        start: candidates to begin with; random ones join them until there are as many as children a round.
        seed: of everything random, so that the same fitness values give the same search.
        known: fitness by candidate from a search cut short, which are not evaluated again; this one ends like that one.
        on_round: called after each round with its number, from 1, and what was found so far.

    Returns:
        The fittest of all candidates that were tried or known.

    Raises:
        RecembError: an argument is out of its range, or every candidate was impossible.
    """
    _check(most, mutation, rounds=rounds, mutants=mutants, crossovers=crossovers, parents=parents)
    search = _Search(evaluate, most, known or {}, random.Random(seed))
    for candidate in dict.fromkeys(_checked("start", candidate, most) for candidate in start):
        search.attempt(candidate)
    while len(search.tried) < min(mutants + crossovers, search.size):
        search.attempt(search.anything_new())
    history: list[tuple[int, float]] = []
    for number in range(1, rounds + 1):
        if len(search.tried) == search.size:
            break
        elite = search.elite(parents)
        for child in range(min(mutants + crossovers, search.size - len(search.tried))):
            crosses = child >= mutants and len(elite) > 1
            search.attempt(search.crossed(elite) if crosses else search.mutant(elite, mutation))
        history.append((len(search.tried), max(search.tried.values())))
        if on_round is not None:
            on_round(number, search.found(search.tried, history))
    found = search.found({**search.tried, **search.known}, history)
    if found.fitness == -math.inf:
        raise RecembError(
            f"none of the {found.evaluated} candidates that were tried is possible; loosen what rules them out, or "
            "begin with one that is possible."
        )
    return found


class _Search:
    """What was tried, and how to make candidates that were not.

    What is known takes no part before it is tried, or else a search that goes on would go another way.

    Args:
        evaluate: as for `evolve`.
        most: F largest numbers.
        known: fitness by candidate.
        draw: everything random.

    Attributes:
        size: how many candidates there are.
        tried: fitness by candidate, in the order of the trials.
    """

    def __init__(
        self,
        evaluate: Callable[[Candidate], float],
        most: Sequence[int],
        known: Mapping[Candidate, float],
        draw: random.Random,
    ) -> None:
        self._evaluate = evaluate
        self._most = [int(largest) for largest in most]
        self._draw = draw
        self.known = {_checked("known", candidate, most): _no_nan(fitness) for candidate, fitness in known.items()}
        self.size = math.prod(self._most)
        self.tried: dict[Candidate, float] = {}

    def attempt(self, candidate: Candidate) -> None:
        """Find the fitness of a candidate that was not tried yet."""
        known = candidate in self.known
        self.tried[candidate] = self.known[candidate] if known else _no_nan(self._evaluate(candidate))

    def elite(self, parents: int) -> list[Candidate]:
        """Return the best candidates, possible ones where there are any."""
        possible = {candidate: fitness for candidate, fitness in self.tried.items() if fitness > -math.inf}
        ranked = possible or self.tried
        return heapq.nlargest(parents, ranked, key=lambda candidate: ranked[candidate])

    def anything_new(self) -> Candidate:
        """Draw any candidate that was not tried; there must be one."""
        # Of so many in a row, one more than were tried, one is new.
        first = self._draw.randrange(self.size)
        row = (self._at((first + step) % self.size) for step in range(len(self.tried) + 1))
        return next(candidate for candidate in row if candidate not in self.tried)

    def mutant(self, elite: Sequence[Candidate], mutation: float) -> Candidate:
        """Make a new candidate from one parent, at least one of its numbers drawn anew."""

        def make() -> Candidate:
            child = list(self._draw.choice(elite))
            features = range(len(child))
            for feature in [one for one in features if self._draw.random() < mutation] or [self._draw.choice(features)]:
                child[feature] = self._draw.randint(1, self._most[feature])
            return tuple(child)

        return self._new(make)

    def crossed(self, elite: Sequence[Candidate]) -> Candidate:
        """Make a new candidate from two parents."""
        return self._new(lambda: tuple(map(self._draw.choice, zip(*self._draw.sample(elite, 2), strict=True))))

    def found(self, fitness: Mapping[Candidate, float], history: list[tuple[int, float]]) -> Found:
        """Say which of some candidates is the best."""
        best = max(fitness, key=lambda candidate: fitness[candidate])
        return Found(best=best, fitness=fitness[best], evaluated=len(self.tried), history=list(history))

    def _new(self, make: Callable[[], Candidate]) -> Candidate:
        """Make candidates until one is new; where nearly all were tried, take anything new."""
        for _ in range(_TRIES):
            if (candidate := make()) not in self.tried:
                return candidate
        return self.anything_new()

    def _at(self, place: int) -> Candidate:
        """Give the candidate at a place, from 0, among all of them in a row."""
        numbers = []
        for largest in self._most:
            place, rest = divmod(place, largest)
            numbers.append(rest + 1)
        return tuple(numbers)


def _no_nan(fitness: float) -> float:
    return -math.inf if math.isnan(fitness) else float(fitness)


def _check(most: Sequence[int], mutation: float, **counts: int) -> None:
    if not len(most) or not all(isinstance(largest, Integral) and largest >= 1 for largest in most):
        raise RecembError(f"most={list(most)} must have a whole number of 1 or more for each feature.")
    # It takes two to be crossed.
    least = {"rounds": 1, "mutants": 0, "crossovers": 0, "parents": 2 if counts["crossovers"] else 1}
    for name, count in counts.items():
        if count < least[name]:
            raise RecembError(f"{name}={count} is too small; a search like this needs at least {least[name]}.")
    if not counts["mutants"] + counts["crossovers"]:
        raise RecembError("mutants=0 and crossovers=0 make no children; give 1 or more of either.")
    if not 0 <= mutation <= 1:
        raise RecembError(f"mutation={mutation} is a probability and must lie between 0 and 1.")


def _checked(what: str, candidate: Candidate, most: Sequence[int]) -> Candidate:
    """Return a candidate as plain ints, or raise where it is not one of those to search."""
    whole = len(candidate) == len(most) and all(isinstance(number, Integral) for number in candidate)
    if not whole or not all(1 <= number <= largest for number, largest in zip(candidate, most, strict=True)):
        raise RecembError(
            f"{what} has the candidate {tuple(candidate)}; it must be whole numbers, one for each of the {len(most)} "
            f"features, from 1 to at most {tuple(most)}."
        )
    return tuple(int(number) for number in candidate)
