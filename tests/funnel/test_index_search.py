"""Beam search as a stage: a slow walk with money in it, ads that are not asked for, its trace."""

from dataclasses import replace
from math import log1p

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tamis.data.batch import Batch
from tamis.data.dataset import Dataset
from tamis.errors import DataError
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.candidates import Candidates
from tamis.funnel.index_search import IndexSearch
from tamis.funnel.log import logged_requests
from tamis.funnel.plan import Surroundings, ad_features
from tamis.funnel.request import Request
from tamis.funnel.retrieval_plans import IndexPlan, IndexSettings
from tamis.funnel.value import ValueFunction
from tamis.models.hsnn import HSNN
from tamis.testing.stages import check_stage


def _plan(blueprint: Blueprint) -> IndexPlan:
    plan = blueprint.stages[0].plan
    assert isinstance(plan, IndexPlan)
    return plan


def _stage(blueprint: Blueprint, **settings: object) -> IndexSearch:
    plan = _plan(blueprint)
    surroundings = Surroundings(
        encoders=blueprint.encoders,
        requests=blueprint.encoders,
        inventory=blueprint.inventory,
        value=ValueFunction(blueprint.weights),
    )
    stage = replace(plan, settings=replace(plan.settings, **settings)).build(surroundings)
    assert isinstance(stage, IndexSearch)
    return stage


def _request(blueprint: Blueprint, data: Dataset, at: int = 0) -> Request:
    stream = logged_requests(data.split("train"), data.spec, blueprint.inventory.codes)
    return [next(stream) for _ in range(at + 1)][at]


def _of(ads: NDArray[np.int64]) -> Candidates:
    return Candidates(ads=ads, scores=np.zeros(len(ads)))


class _SlowWalk:
    """The search for one request, an ad and a node at a time, from the members' paths alone."""

    def __init__(self, blueprint: Blueprint, request: Request, ads: NDArray[np.int64]) -> None:
        plan, inventory = _plan(blueprint), blueprint.inventory
        self.model, self.request, self.value = plan.model.module, request, blueprint.weights
        self.spec, self.categories = plan.model.spec, inventory.rows.ids
        members = plan.snapshot.members
        row = {code: at for at, code in enumerate(inventory.codes.tolist())}
        rows = [row[code] for code in members.ids.tolist()]
        self.vector = dict(zip(rows, members.vectors, strict=True))
        self.path = dict(zip(rows, map(tuple, members.codes.tolist()), strict=True))
        self.codebooks = plan.snapshot.codebooks
        self.open, self.ads = set(ads.tolist()), inventory.attributes
        assert isinstance(self.model, HSNN)
        assert request.features is not None
        self.users = self.model.encode_user(request.features)

    def members_of(self, ad: int, depth: int) -> list[int]:
        """Ads of a node; at the last level the ad alone."""
        prefix = self.path[ad][: depth + 1]
        return [ad] if depth == 2 else [i for i, p in self.path.items() if p[: depth + 1] == prefix]

    def pair_of(self, ad: int) -> Batch:
        """The request's row, with what its number of matches would be beside the ad."""
        features = self.request.features
        assert features is not None
        numeric = features.numeric.clone()
        for number, field in enumerate(self.spec.numeric_counts):
            if field:
                event = self.spec.sequences[0].fields.index(field)
                category = int(self.categories[self.spec.sequences[0].tables[event]][ad])
                met = features.sequences["history"].values[:, event].tolist()
                numeric[0, number] = log1p(met.count(category))
        return replace(features, numeric=numeric)

    def worth(self, ad: int, depth: int) -> float:
        """Mean value of a node's ads, each with its own bid and the node's chances."""
        outputs = []
        for level in range(depth + 1):
            path = self.path[ad][: level + 1]
            centres = sum(book[code] for book, code in zip(self.codebooks, path, strict=False))
            vector = (centres if level < 2 else self.vector[ad])[None]
            pairs = self.pair_of(ad) if level == 2 else None
            outputs.append(self.model.pair_logits(level, self.users[level], vector, pairs))
        z = self.model.ensemble(depth, torch.stack(outputs, dim=1))[0].double()
        click, conversion, hide = torch.sigmoid(z).tolist()
        mates = self.members_of(ad, depth)
        total = 0.0
        for mate in mates:
            paid = click if self.ads.billing[mate] == "click" else click * conversion
            hidden = self.value.penalties["hide"] * hide
            total += self.ads.bid[mate] * paid - hidden + self.ads.quality[mate]
        return total / len(mates)

    def search(self, beams: tuple[int, int], keep: int) -> tuple[list[int], list[int]]:
        """The best ads, and how many nodes and ads were scored on each level."""
        under, counts = [ad for ad in self.path if ad in self.open], []
        for depth, beam in enumerate(beams):
            nodes = {self.path[ad][: depth + 1]: ad for ad in under}
            counts.append(len(nodes))
            worth = {node: self.worth(ad, depth) for node, ad in nodes.items()}
            kept = sorted(worth, key=worth.__getitem__, reverse=True)[:beam]
            under = [ad for ad in under if self.path[ad][: depth + 1] in kept]
        counts.append(len(under))
        return sorted(under, key=lambda ad: self.worth(ad, 2), reverse=True)[:keep], counts


@pytest.mark.parametrize(("beams", "every"), [((1, 2), 1), ((3, 5), 1), ((2, 3), 4)])
@torch.inference_mode()
def test_answer_and_trace_equal_a_slow_walk(
    searched: Blueprint, market_data: Dataset, beams: tuple[int, int], every: int
) -> None:
    request = _request(searched, market_data, at=2)
    ads = np.arange(0, len(searched.inventory), every)
    ranked, counts = _SlowWalk(searched, request, ads).search(beams, keep=20)

    scored = _stage(searched, beams=beams)(request, _of(ads), 20)

    assert scored.candidates.ads.tolist() == ranked
    assert [level.pairs for level in scored.levels] == counts
    assert scored.scored_pairs == counts[-1]
    assert [level.kept for level in scored.levels] == [
        *(min(beam, count) for beam, count in zip(beams, counts, strict=False)), len(ranked)
    ]  # fmt: skip
    user_flops, pair_flops = _plan(searched).model.module.count_flops()
    assert scored.flops == user_flops + sum(np.multiply(counts, pair_flops))
    # Beams bind: most ads are not looked at.
    assert counts[-1] < len(ads)


@pytest.mark.slow
def test_requests_together_find_what_each_finds_alone(
    counting: Blueprint, market_data: Dataset
) -> None:
    stage = _stage(counting, beams=(2, 3))
    requests = [_request(counting, market_data, at=at) for at in (0, 5, 9)]
    every = len(counting.inventory)
    asked = [_of(np.arange(0, every, step)) for step in (1, 4, 1)]

    together = stage.score_all(requests, asked, 20)

    for one, *alone in zip(together, requests, asked, strict=True):
        expected = stage(*alone, 20)
        assert one.candidates.ads.tolist() == expected.candidates.ads.tolist()
        np.testing.assert_allclose(one.candidates.scores, expected.candidates.scores, rtol=1e-4)
        assert one.levels == expected.levels
        assert (one.scored_pairs, one.flops) == (expected.scored_pairs, expected.flops)


@torch.inference_mode()
def test_scores_of_ads_are_their_total_values(searched: Blueprint, market_data: Dataset) -> None:
    request = _request(searched, market_data)
    ads = np.arange(len(searched.inventory))
    slow = _SlowWalk(searched, request, ads)

    found = _stage(searched)(request, _of(ads), 10).candidates

    worth = [slow.worth(ad, 2) for ad in found.ads.tolist()]
    np.testing.assert_allclose(found.scores, worth, rtol=1e-4, atol=1e-7)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert {"click", "conversion"} == set(searched.inventory.attributes.billing[found.ads])


@pytest.mark.slow
@torch.inference_mode()
def test_ads_are_scored_by_what_the_user_met_of_their_category(
    counting: Blueprint, market_data: Dataset
) -> None:
    codes = counting.inventory.codes
    stream = logged_requests(
        market_data.split("test"), market_data.spec, codes, may_be_unknown=True
    )
    request = max(stream, key=lambda one: len(one.features.sequences["history"].values))
    slow = _SlowWalk(counting, request, ads := np.arange(len(counting.inventory)))

    found = _stage(counting, beams=(100, 100))(request, _of(ads), len(ads)).candidates

    worth = [slow.worth(ad, 2) for ad in found.ads.tolist()]
    np.testing.assert_allclose(found.scores, worth, rtol=1e-4, atol=1e-7)
    met = {float(slow.pair_of(ad).numeric.sum()) for ad in ads.tolist()}
    assert len(met) > 1  # else any one number would do


def test_task_weights_leave_bids_out(searched: Blueprint, market_data: Dataset) -> None:
    request, ads = _request(searched, market_data), np.arange(len(searched.inventory))
    stage = _stage(searched, beams=(100, 100), task_weights=(1.0, 0.0, 0.0))

    found = stage(request, _of(ads), 10).candidates

    assert (found.scores > 0).all()
    assert (found.scores < 1).all()
    by_value = _stage(searched, beams=(100, 100))(request, _of(ads), 10).candidates
    assert found.ads.tolist() != by_value.ads.tolist()


def test_ads_that_are_not_asked_for_never_come_back(
    searched: Blueprint, market_data: Dataset
) -> None:
    stage, request = _stage(searched, beams=(100, 100)), _request(searched, market_data)
    every = stage(request, _of(np.arange(len(searched.inventory))), 1000).candidates
    assert len(every) == len(searched.inventory)
    # The best ones are dead, or filtered.
    others = np.setdiff1d(every.ads, every.ads[:30])

    found = stage(request, _of(others), 1000)

    assert found.candidates.ads.tolist() == every.ads[30:].tolist()
    assert found.scored_pairs == len(others)


def test_ads_that_the_index_does_not_hold_leave_nothing(
    searched: Blueprint, market_data: Dataset
) -> None:
    plan, codes = _plan(searched), searched.inventory.codes
    smaller = replace(searched.stages[0], plan=plan.without_ads(codes[:3]))
    stage = _stage(replace(searched, stages=(smaller, *searched.stages[1:])))

    found = stage(_request(searched, market_data), _of(np.arange(3)), 5)

    assert len(found.candidates) == found.scored_pairs == 0


def test_user_is_encoded_once_for_a_request(
    searched: Blueprint, market_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, calls = _stage(searched), []
    model = _plan(searched).model.module
    encode = model.encode_user
    monkeypatch.setattr(model, "encode_user", lambda users: calls.append(1) or encode(users))

    stage(_request(searched, market_data), _of(np.arange(len(searched.inventory))), 20)

    assert len(calls) == 1


def test_stage_keeps_the_promises_of_stages(searched: Blueprint, market_data: Dataset) -> None:
    ads = np.array([14, 3, 9, 25, 0, 7, 2, 31, 40, 41, 55])

    check_stage(_stage(searched), _request(searched, market_data), ads)


def test_request_without_features_is_refused(searched: Blueprint) -> None:
    request = Request(request_id=3, user=0, time_micros=0, slots=1)

    with pytest.raises(DataError, match=r"request 3: must have features for retrieval, got none"):
        _stage(searched)(request, _of(np.arange(9)), 5)


def test_rows_of_other_ads_are_refused(searched: Blueprint) -> None:
    plan, ads = _plan(searched), searched.inventory.attributes
    for rows in (np.arange(3), np.arange(len(ads)) + 1):
        with pytest.raises(DataError, match=r"rows must be one of \d+ ads for each of \d+ items"):
            IndexSearch(
                plan.model.module, plan.model.spec, plan.snapshot, rows,
                ad_features(searched.inventory, searched.encoders, searched.encoders), ads,
                ValueFunction(searched.weights), beams=IndexSettings(beams=(3, 5)).beams,
            )  # fmt: skip
