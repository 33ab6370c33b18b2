"""Stages without a model of the catalog."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tamis.errors import DataError
from tamis.funnel.ads import AdTable
from tamis.funnel.candidates import Candidates
from tamis.funnel.funnel import Funnel, Step
from tamis.funnel.request import Request
from tamis.funnel.stages import DotProduct, Popularity, ScoredBy


def _candidates(*ads: int) -> Candidates:
    return Candidates(ads=np.array(ads, np.int64), scores=np.zeros(len(ads)))


def test_popularity_counts_events_by_ad(make_request: Callable[..., Request]) -> None:
    stage = Popularity.of_events(np.array([3, 1, 3, 3, 1]), num_ads=5)

    scored = stage(make_request(), _candidates(4, 3, 1), 1)

    assert scored.candidates.ads.tolist() == [4, 3, 1]
    assert scored.candidates.scores.tolist() == [0, 3, 2]
    assert scored.scored_pairs == 0


def test_function_scores_the_candidates_of_its_request(
    make_request: Callable[..., Request],
) -> None:
    stage = ScoredBy(lambda request, ads: ads * 1.0 + request.user, flops_per_pair=7)

    scored = stage(make_request(user=100), _candidates(4, 3), 1)

    assert scored.candidates.scores.tolist() == [104, 103]
    assert scored.scored_pairs == 2
    assert scored.flops == 14


def test_operations_that_are_not_known_are_not_made_up(
    make_request: Callable[..., Request],
) -> None:
    scored = ScoredBy(lambda request, ads: ads * 1.0)(make_request(), _candidates(4), 1)

    assert scored.flops is None


def _vectors(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("count", [6, 30])  # few are gathered; most are read in order
def test_dot_products_equal_a_loop(make_request: Callable[..., Request], count: int) -> None:
    items, queries = _vectors(40, 5), _vectors(3, 5)
    stage = DotProduct(items, lambda request: queries[request.user])
    ads = np.random.default_rng(1).permutation(40)[:count]

    scored = stage(make_request(user=2), _candidates(*ads), 4)

    query = queries[2].double().numpy()
    expected = {int(ad): float(items[ad].double().numpy() @ query) for ad in ads}
    best = sorted(expected, key=lambda ad: -expected[ad])[:4]
    assert scored.candidates.ads.tolist() == best
    np.testing.assert_allclose(scored.candidates.scores, [expected[ad] for ad in best], rtol=1e-5)
    assert scored.scored_pairs == count
    assert scored.flops == 2 * 5 * count


def test_retrieval_in_a_funnel_finds_the_best_of_all_ads(
    make_ads: Callable[..., AdTable], make_request: Callable[..., Request], click_value: Any
) -> None:
    items = _vectors(500, 8)
    stage = DotProduct(items, lambda request: items[request.user])
    funnel = Funnel([Step(name="retrieval", stage=stage, keep=50)], make_ads(500), click_value)

    trace = funnel.answer(make_request(user=17))

    expected = torch.topk(items @ items[17], 50).indices
    assert trace.stages[0].ads.tolist() == expected.tolist()
    assert trace.stages[0].num_candidates == 500


def test_vectors_must_be_a_matrix() -> None:
    with pytest.raises(DataError, match=r"DotProduct: items must be one vector .* got shape \(4,"):
        DotProduct(torch.zeros(4), lambda request: torch.zeros(4))


@pytest.mark.parametrize("count", [6, 30])
def test_offsets_are_added_to_the_products_of_their_ads(
    make_request: Callable[..., Request], count: int
) -> None:
    items, offsets = _vectors(40, 5), np.linspace(-3, 3, 40) ** 3
    plain = DotProduct(items, lambda request: items[request.user])
    moved = DotProduct(
        items, lambda request: items[request.user], offsets=offsets, query_flops=17.0
    )
    ads = np.random.default_rng(1).permutation(40)[:count]

    before, after = (stage(make_request(), _candidates(*ads), count) for stage in (plain, moved))

    score = dict(zip(before.candidates.ads.tolist(), before.candidates.scores, strict=True))
    expected = [score[ad] + offsets[ad] for ad in after.candidates.ads.tolist()]
    np.testing.assert_allclose(after.candidates.scores, expected, rtol=1e-5)
    assert after.candidates.ads.tolist() != before.candidates.ads.tolist()
    assert after.flops == before.flops + 17


def test_offsets_must_be_one_for_each_ad() -> None:
    with pytest.raises(DataError, match=r"offsets must be one for each of 4 ads, got shape \(3,\)"):
        DotProduct(torch.zeros(4, 2), lambda request: torch.zeros(2), offsets=np.zeros(3))


def test_several_requests_get_the_products_of_their_own_vectors(
    make_request: Callable[..., Request],
) -> None:
    items, users, offsets = _vectors(40, 5), _vectors(3, 5), np.linspace(-1, 1, 40)
    asked: list[list[int]] = []

    def queries(requests: Sequence[Request]) -> torch.Tensor:
        asked.append([request.user for request in requests])
        return users[asked[-1]]

    stage = DotProduct(items, lambda request: users[request.user], queries=queries, offsets=offsets)
    requests = [make_request(at, user=user) for at, user in enumerate((2, 0, 1))]
    shuffled = np.random.default_rng(1).permutation(40)
    candidates = [_candidates(*ads) for ads in (range(40), shuffled, shuffled[:25])]

    together = stage.score_all(requests, candidates, 4)

    assert asked == [[2, 0, 1]]
    for request, its, scored in zip(requests, candidates, together, strict=True):
        query = users[request.user].double().numpy()
        expected = {
            int(ad): float(items[ad].double().numpy() @ query) + offsets[ad] for ad in its.ads
        }
        best = sorted(expected, key=lambda ad: -expected[ad])[:4]
        assert scored.candidates.ads.tolist() == best
        np.testing.assert_allclose(
            scored.candidates.scores, [expected[ad] for ad in best], rtol=1e-5
        )
        assert scored.scored_pairs == len(its)


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("candidates", [3000, 2000])
@pytest.mark.parametrize("has_offsets", [True, False])
def test_best_of_many_are_those_of_float64_with_and_without_a_scan(
    make_request: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    is_fast: bool,
    candidates: int,
    has_offsets: bool,
) -> None:
    monkeypatch.setattr("tamis.funnel.stages.has_fast_int8", lambda device: is_fast)
    # Vectors in a narrow cone: rounded, many of the best are the same.
    items = _vectors(3000, 16) * 0.02 + 1.0
    queries = _vectors(4, 16) * 0.1 + 1.0
    offsets = np.random.default_rng(0).normal(0, 1e-3, 3000) if has_offsets else None
    stage = DotProduct(items, lambda request: queries[request.user], offsets=offsets)
    assert (stage._scan is not None) == is_fast
    ads = np.random.default_rng(1).permutation(3000)[:candidates]
    asked = [make_request(user=user) for user in range(4)]

    found = stage.score_all(asked, [_candidates(*ads)] * 4, 25)

    for user, scored in enumerate(found):
        exact = items.double().numpy() @ queries[user].double().numpy()
        exact += 0.0 if offsets is None else offsets.astype(np.float32)
        best = sorted(ads.tolist(), key=lambda ad: -exact[ad])[:25]
        # Float32 may take two for equal that differ in the seventh digit.
        np.testing.assert_allclose(exact[scored.candidates.ads], exact[best], rtol=1e-6)
        np.testing.assert_allclose(scored.candidates.scores, exact[best], rtol=1e-6)
        assert scored.scored_pairs == candidates
        (alone,) = stage.score_all([asked[user]], [_candidates(*ads)], 25)
        if is_fast:
            assert alone.candidates.ads.tolist() == scored.candidates.ads.tolist()
        # A product of all with all rounds a row by how many there are.
        np.testing.assert_allclose(exact[alone.candidates.ads], exact[best], rtol=1e-6)


@pytest.mark.parametrize(("strange", "is_alike"), [(float("inf"), False), (100.0, True)])
def test_scan_that_says_nothing_leaves_it_to_float32(
    make_request: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    strange: float,
    is_alike: bool,
) -> None:
    items = _vectors(400, 8)
    items[7] = strange
    items[8:] = float(items[8:].mean()) if is_alike else items[8:]
    found = []
    for is_fast in (True, False):
        monkeypatch.setattr("tamis.funnel.stages.has_fast_int8", lambda device, is_=is_fast: is_)
        stage = DotProduct(items, lambda request: items[3].abs())
        found.append(stage(make_request(), _candidates(*range(400)), 5).candidates)

    assert found[0].ads.tolist() == found[1].ads.tolist()
    assert found[0].ads[0] == 7
