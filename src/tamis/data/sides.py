"""The inputs of one side: what the user, the ad or the context alone brings along."""

from dataclasses import replace

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Side


def numeric_side(spec: InputSpec, place: int) -> Side:
    """Whom the numeric feature at a place describes."""
    return spec.numeric_sides[place] if spec.numeric_sides else "context"


def side_spec(spec: InputSpec, side: Side) -> InputSpec:
    """The inputs of one side, in their order, with the tables that they use and no others."""
    categorical = tuple(item for item in spec.categorical if item.side == side)
    sequences = tuple(group for group in spec.sequences if group.side == side)
    numeric = tuple(
        name for place, name in enumerate(spec.numeric) if numeric_side(spec, place) == side
    )
    used = {item.table for item in categorical}
    used |= {table for group in sequences for table in group.tables}
    return replace(
        spec,
        numeric=numeric,
        categorical=categorical,
        sequences=sequences,
        tables=tuple(table for table in spec.tables if table.name in used),
        numeric_sides=(side,) * len(numeric),
    )


def side_batch(batch: Batch, spec: InputSpec, side: Side) -> Batch:
    """The same rows with the inputs of one side, as a model of :func:`side_spec` takes them."""
    numeric = [place for place, _ in enumerate(spec.numeric) if numeric_side(spec, place) == side]
    ids = [place for place, item in enumerate(spec.categorical) if item.side == side]
    return replace(
        batch,
        numeric=batch.numeric[:, numeric],
        ids=batch.ids[:, ids],
        sequences={
            group.name: batch.sequences[group.name]
            for group in spec.sequences
            if group.side == side
        },
    )
