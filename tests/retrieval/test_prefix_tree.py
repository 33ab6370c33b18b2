"""Trees of random paths against dictionaries."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.retrieval.prefix_tree import build_tree, sorted_places

_PATHS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(_PATHS, st.integers(0, 999))
def test_tree_equals_a_dictionary_of_prefixes(paths: list[tuple[int, ...]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(1000, generator=generator)[: len(paths)]
    # Few different distances, so that some members are equally near.
    distances = torch.randint(0, 3, (len(paths), 3), generator=generator).float()
    codes = torch.tensor(paths)
    order = sorted_places(ids, codes)
    ids, codes, distances = ids[order], codes[order], distances[order]
    tree = build_tree(ids, codes, distances)

    rows = [(tuple(c), i) for c, i in zip(codes.tolist(), ids.tolist(), strict=True)]
    assert rows == sorted(rows)
    for level in range(3):
        prefixes = sorted({path[: level + 1] for path in paths})
        assert tree.num_nodes[level] == len(prefixes)
        for node, prefix in enumerate(prefixes):
            under = [
                (float(distances[place, level]), item, place)
                for place, (path, item) in enumerate(rows)
                if path[: level + 1] == prefix
            ]
            assert int(tree.representatives[level][node]) == min(under)[2]
            children, lengths = tree.expand(level, torch.tensor([node]))
            deeper = sorted({path[: level + 2] for path in paths})
            expected = (
                [place for _, _, place in under]
                if level == 2
                else [n for n, other in enumerate(deeper) if other[: level + 1] == prefix]
            )
            assert children.tolist() == sorted(expected)
            assert lengths.tolist() == [len(expected)]


def test_expand_keeps_the_order_of_the_nodes_that_are_asked_for() -> None:
    codes = torch.tensor([[0], [0], [1], [2], [2], [2]])
    tree = build_tree(torch.arange(6), codes, torch.zeros(6, 1))
    children, lengths = tree.expand(0, torch.tensor([2, 0]))

    assert children.tolist() == [3, 4, 5, 0, 1]
    assert lengths.tolist() == [3, 2]
    assert tree.expand(0, torch.zeros(0, dtype=torch.int64))[0].tolist() == []
