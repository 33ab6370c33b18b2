"""The inputs of one side: what the user, the ad or the context alone brings along."""

from dataclasses import replace

from tamis.data.batch import Batch
from tamis.data.schema import InputSpec, Side


def side_spec(spec: InputSpec, side: Side) -> InputSpec:
    """The inputs of one side, in their order, with the tables that they use and no others."""
    categorical = tuple(spec.categorical[place] for place in spec.categorical_of(side))
    sequences = spec.sequences_of(side)
    places = spec.numeric_of(side)
    numeric = tuple(spec.numeric[place] for place in places)
    counts = spec.numeric_counts
    used = {item.table for item in categorical}
    used |= {table for group in sequences for table in group.tables}
    return replace(
        spec,
        numeric=numeric,
        categorical=categorical,
        sequences=sequences,
        tables=tuple(table for table in spec.tables if table.name in used),
        numeric_sides=(side,) * len(numeric),
        numeric_counts=tuple(counts[place] for place in places) if counts else (),
        item=spec.item if spec.item in {item.name for item in categorical} else "",
    )


def side_batch(batch: Batch, spec: InputSpec, side: Side) -> Batch:
    """The same rows with the inputs of one side, as a model of :func:`side_spec` takes them."""
    return replace(
        batch,
        numeric=batch.numeric[:, list(spec.numeric_of(side))],
        ids=batch.ids[:, list(spec.categorical_of(side))],
        sequences={group.name: batch.sequences[group.name] for group in spec.sequences_of(side)},
    )


def with_side(batch: Batch, others: Batch, spec: InputSpec, side: Side) -> Batch:
    """The same rows with the inputs of one side from as many other rows."""
    numbers, columns = list(spec.numeric_of(side)), list(spec.categorical_of(side))
    groups = [group.name for group in spec.sequences_of(side)]
    numeric, ids = batch.numeric.clone(), batch.ids.clone()
    numeric[:, numbers], ids[:, columns] = others.numeric[:, numbers], others.ids[:, columns]
    sequences = {**batch.sequences, **{name: others.sequences[name] for name in groups}}
    return replace(batch, numeric=numeric, ids=ids, sequences=sequences)
