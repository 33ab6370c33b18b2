"""What a person should know of a model that compares histories with the candidate and cannot."""

from torch import nn

from tamis.nn.sequence import CandidateInputs


def history_warnings(name: str, model: nn.Module) -> list[str]:
    """A line for each reason why a model, or a member of it, cannot do what it is for.

    Args:
        name: What the model is called.
        model: It may hold several that read histories, or none.
    """
    readers = [part for part in model.modules() if isinstance(part, CandidateInputs)]
    if not readers:
        return []
    if not any(reader.names for reader in readers):
        return [
            f"{name} compares histories with the candidate, but the schema has no field of kind "
            f"'sequence': nothing but its MLP on the fields is left. Add a history to the log, or "
            f"take a model that needs none, such as dhen"
        ]
    unmatched = sorted({group for reader in readers for group in reader.unmatched})
    return [
        f"{name} compares histories with the candidate, but no field shares a table with sequence "
        f"{group!r}, which it then reads alike for every candidate. Set shares in the schema to "
        f"the categorical field whose values its events are (such as the item's id), and ingest "
        f"anew"
        for group in unmatched
    ]
