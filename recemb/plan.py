"""What a method holds for a data set and a budget, worked out without allocating any table."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recemb.budget import FLOAT32_BYTES, parse_budget
from recemb.datasets import DatasetConfig, Feature
from recemb.datasets.criteo_kaggle_shape import CriteoKaggleShapeConfig
from recemb.datasets.prepared import META
from recemb.models.base import ModelConfig
from recemb.options import RecembError
from recemb.tables.base import Layout, TableConfig, TableSpec, total_full_bytes
from recemb.tables.registry import check_raw_ids, config_to_dict

PLAN_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PlannedTable:
    """A physical table.

    Attributes:
        name: its name.
        rows: number of rows.
        width: floats a row.
        held: how rows are held when served: the precision asked for, or a finer one that takes no more bytes.
        bytes: of all rows.
        features: the logical tables that look it up, each once.
    """

    name: str
    rows: int
    width: int
    held: str
    bytes: int
    features: list[str]


@dataclass(frozen=True, kw_only=True)
class PlannedParameter:
    """A small trained weight beside the rows, such as a projection.

    Attributes:
        name: its name.
        shape: its shape.
        bytes: its bytes.
        feature: the logical table whose vectors it makes.
    """

    name: str
    shape: list[int]
    bytes: int
    feature: str


@dataclass(frozen=True, kw_only=True)
class PlannedFeature:
    """A logical table: a categorical feature as the model sees it.

    Attributes:
        name: the feature.
        ids: V, its number of ids.
        width: of the vector that the model gets.
        full_bytes: of its uncompressed fp32 table.
        bytes: of the rows and parameters that it alone uses; what it shares with others is not in here.
        tables: names of the physical tables it looks up, in the order they are combined; one may come several times.
        parameters: names of its parameters.
    """

    name: str
    ids: int
    width: int
    full_bytes: int
    bytes: int
    tables: list[str]
    parameters: list[str]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All tables together.

    Attributes:
        ids: of all features.
        rows: of all physical tables.
        rows_bytes: their bytes.
        parameters_bytes: bytes of the parameters beside the rows.
        constants_bytes: bytes of hash salts, moduli and the like, which serving needs too.
        bytes: all serving bytes, the sum of these three; what a budget bounds.
        trained: number of trained floats, in rows and in parameters.
        full_bytes: of the uncompressed fp32 tables.
        full_trained: number of their floats.
        kept: bytes over full_bytes.
    """

    ids: int
    rows: int
    rows_bytes: int
    parameters_bytes: int
    constants_bytes: int
    bytes: int
    trained: int
    full_bytes: int
    full_trained: int
    kept: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one method holds for one data set.

    `to_dict` gives the form that `recemb plan --json` prints. Every key is the name of an attribute here or in the
    classes above; sizes are integers, in bytes where the name says so. `schema` changes when a key changes its meaning
    or goes; new keys may come without notice.

    Attributes:
        schema: version of this form.
        dataset: the data set's name.
        budget: the budget as it was given, or None.
        budget_bytes: the budget in bytes, or None.
        embedding_dim: D, the width of a full table's vectors.
        precision: how rows are asked to be held when served.
        table: the method's `name` and its options, sizes set.
        learned: training decides which rows are held, within the budget; the tables here are those of the most frequent
            ids, which the budget stands for before.
        features: the logical tables, in the order of a batch's features.
        tables: the physical tables, each once.
        parameters: the small trained weights.
        constants: bytes of each constant, by name.
        totals: sums over all of them.
        data: where the data set was, `{"name", "path"}`; training takes it from there unless told otherwise.
        model: the backbone's `name` and its options; training takes it unless told otherwise.
        advice: how the plan was chosen (`recemb.advice.record`), None where somebody named the method.
        frequencies: what is assumed of how often ids occur; None where they were counted, or are unknown.
    """

    schema: int
    dataset: str
    budget: str | None
    budget_bytes: int | None
    embedding_dim: int
    precision: str
    table: dict[str, Any]
    learned: bool
    features: list[PlannedFeature]
    tables: list[PlannedTable]
    parameters: list[PlannedParameter]
    constants: dict[str, int]
    totals: Totals
    data: dict[str, str]
    model: dict[str, Any]
    advice: dict[str, Any] | None = None
    frequencies: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Write the plan as plain JSON types."""
        return dataclasses.asdict(self)


def make_plan(
    features: Sequence[Feature],
    table: TableConfig,
    model: ModelConfig,
    budget: str | int | float | None = None,
    *,
    precision: str = "fp32",
    dataset: str = "",
    path: str = "",
) -> Plan:
    """Lay a method out for the features of a data set.

    Args:
        features: what is known of the categorical features.
        table: the method; the budget sets its sizes.
        model: says how wide vectors are.
        budget: serving bytes, as `parse_budget` reads them; None takes the sizes as configured.
        precision: how rows are held once served; a budget counts their bytes in it.
        dataset: name of the data set, for the plan.
        path: where it is.

    Raises:
        RecembError: the budget or an option does not fit these features.
    """
    specs = table_specs(features, model, precision)
    plan = plan_of(specs, sized(table, budget, specs), model, budget, dataset=dataset, path=path)
    return dataclasses.replace(plan, frequencies=features[0].frequencies if features else None)


def plan_of(
    specs: Sequence[TableSpec],
    table: TableConfig,
    model: ModelConfig,
    budget: str | int | float | None = None,
    *,
    dataset: str = "",
    path: str = "",
    advice: dict[str, Any] | None = None,
) -> Plan:
    """Say what a table, its sizes set, holds for logical tables; see `make_plan`, and `Plan` for `advice`."""
    layout = table.layout(specs)
    return Plan(
        schema=PLAN_SCHEMA,
        dataset=dataset,
        budget=None if budget is None else str(budget),
        budget_bytes=None if budget is None else parse_budget(budget, total_full_bytes(specs)),
        embedding_dim=model.embedding_dim,
        precision=specs[0].precision,
        table=config_to_dict(table),
        learned=table.learns,
        features=_features(specs, layout),
        tables=_tables(specs, layout),
        parameters=[
            PlannedParameter(
                name=parameter.name,
                shape=list(parameter.shape),
                bytes=parameter.bytes,
                feature=specs[parameter.spec_index].name,
            )
            for parameter in layout.parameters
        ],
        constants={name: tensor.nbytes for name, tensor in layout.constants.items()},
        totals=_totals(specs, layout),
        data={"name": dataset, "path": path},
        model=model.to_dict(),
        advice=advice,
    )


def known_features(dataset: DatasetConfig, asked: Collection[str] = ()) -> list[Feature]:
    """Say what is known of a data set's features without preparing it; `asked` names the options that were given.

    Raises:
        RecembError: it is not prepared, and its rows would have to be read; or what lies at its path is another.
    """
    try:
        return dataset.describe_features(asked)
    except RecembError as error:
        if isinstance(dataset, CriteoKaggleShapeConfig) or (Path(dataset.path).expanduser() / META).exists():
            raise
        raise RecembError(
            f"There is no prepared data set at {dataset.path}; run recemb prepare dataset={dataset.name} to make it, "
            "or plan for dataset=criteo_kaggle_shape, which needs none."
        ) from error


def table_specs(features: Sequence[Feature], model: ModelConfig, precision: str = "fp32") -> list[TableSpec]:
    """Describe one logical table for each categorical feature, of the width and start that the model asks for."""
    return [
        TableSpec(
            name=feature.name,
            num_embeddings=feature.num_embeddings,
            embedding_dim=model.embedding_dim,
            counts=feature.counts,
            max_length=feature.max_length,
            init_std=model.init_std,
            raw_ids=feature.raw,
            precision=precision,
        )
        for feature in features
    ]


def sized(table: TableConfig, budget: str | int | float | None, specs: Sequence[TableSpec]) -> TableConfig:
    """Size a table method for a budget, or leave it as configured where there is none.

    Raises:
        RecembError: the budget cannot be met, the method's own options say already how large the tables are, or it
            does not take these ids.
    """
    check_raw_ids(table, specs)
    if budget is None:
        return table
    # Sizes are the options whose default is None, unless a method says otherwise.
    sizes = [option.name for option in dataclasses.fields(table) if option.default is None]
    for size in sizes if table.size_options is None else table.size_options:
        if getattr(table, size) is not None:
            raise RecembError(
                f"budget={budget} and table.{size}={getattr(table, size)} both say how large the tables are; "
                "give one of them."
            )
    return table.fit(specs, parse_budget(budget, total_full_bytes(specs)))


def _features(specs: Sequence[TableSpec], layout: Layout) -> list[PlannedFeature]:
    own_bytes = layout.bytes_per_table(specs)
    return [
        PlannedFeature(
            name=spec.name,
            ids=spec.num_embeddings,
            width=width,
            full_bytes=spec.full_bytes,
            bytes=own_bytes[spec.name],
            tables=[layout.tables[table].name for table in lookups],
            parameters=[parameter.name for parameter in layout.parameters if parameter.spec_index == index],
        )
        for index, (spec, width, lookups) in enumerate(zip(specs, layout.dims, layout.lookups, strict=True))
    ]


def _tables(specs: Sequence[TableSpec], layout: Layout) -> list[PlannedTable]:
    users: list[list[str]] = [[] for _ in layout.tables]
    for spec, lookups in zip(specs, layout.lookups, strict=True):
        for table in dict.fromkeys(lookups):
            users[table].append(spec.name)
    return [
        PlannedTable(
            name=table.name, rows=table.rows, width=table.dim, held=table.held, bytes=table.bytes, features=features
        )
        for table, features in zip(layout.tables, users, strict=True)
    ]


def _totals(specs: Sequence[TableSpec], layout: Layout) -> Totals:
    parts, full_bytes = layout.parts, total_full_bytes(specs)
    return Totals(
        ids=sum(spec.num_embeddings for spec in specs),
        rows=sum(table.rows for table in layout.tables),
        rows_bytes=parts["rows"],
        parameters_bytes=parts["parameters"],
        constants_bytes=parts["constants"],
        bytes=layout.serving_bytes,
        trained=sum(table.rows * table.dim for table in layout.tables) + parts["parameters"] // FLOAT32_BYTES,
        full_bytes=full_bytes,
        full_trained=full_bytes // FLOAT32_BYTES,
        kept=layout.serving_bytes / full_bytes,
    )
