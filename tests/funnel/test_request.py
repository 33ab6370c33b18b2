"""What a request must be."""

import numpy as np
import pytest
import torch

from tamis.data.batch import Batch
from tamis.errors import DataError
from tamis.funnel.request import Impressions, Request


@pytest.mark.parametrize(("request_id", "slots"), [(-1, 1), (0, 0)])
def test_numbers_out_of_range_are_refused(request_id: int, slots: int) -> None:
    with pytest.raises(DataError, match=rf"got request_id={request_id}, slots={slots}"):
        Request(request_id=request_id, user=0, time_micros=0, slots=slots)


def _two_rows() -> Batch:
    return Batch(
        numeric=torch.zeros(2, 0),
        ids=torch.zeros(2, 1, dtype=torch.int32),
        labels=torch.zeros(2, 1),
        weights=torch.ones(2),
    )


def test_features_of_several_requests_are_refused() -> None:
    with pytest.raises(DataError, match=r"request 7: features must be one row, got 2"):
        Request(request_id=7, user=0, time_micros=0, slots=1, features=_two_rows())


def test_features_of_other_impressions_are_refused() -> None:
    with pytest.raises(DataError, match=r"must be one row for each of 3 ads shown, got 2"):
        Impressions(ads=np.arange(3), labels={}, features=_two_rows())


def test_a_label_for_each_ad_shown_is_needed() -> None:
    with pytest.raises(DataError, match=r"labels of 'click': must be one for each of 3 ads"):
        Impressions(ads=np.arange(3), labels={"click": np.zeros(2, np.float32)})
