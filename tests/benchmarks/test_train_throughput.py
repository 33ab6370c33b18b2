from types import SimpleNamespace

import peers
import train_throughput


class StubWorker:
    """Answers from a script; raises where the script says so."""

    def __init__(self, hello, answers):
        self.hello = {"version": "1", **hello}
        self.answers = answers

    def ask(self, do, **message):
        answer = self.answers[(do, *message.values())].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def epoch(seconds):
    return {"seconds": [seconds], "rows": 1000, "peak_rss_bytes": 5}


def test_first_epoch_warms_up_and_is_not_counted():
    worker = StubWorker(
        {"precision": "float32"},
        {
            ("epoch",): [epoch(9.0), epoch(2.0), epoch(4.0)],
            ("finish",): [{"auc": 0.7, "log_loss": 0.4}],
        },
    )
    contender = train_throughput.Contender("tamis", worker)
    for _ in range(3):
        contender.epoch()
    row = contender.row()
    # Counted epochs take 2 and 4 s: median 3 s for 1000 rows.
    assert row["samples_per_second"] == 1000 / 3
    assert row["epoch_seconds"] == [9.0, 2.0, 4.0]


def test_a_peers_quality_is_the_test_metric_of_its_best_validation_epoch():
    worker = StubWorker(
        {},
        {
            ("epoch",): [epoch(1.0), epoch(1.0), epoch(1.0)],
            ("evaluate", "valid"): [{"log_loss": 0.5}, {"log_loss": 0.3}, {"log_loss": 0.4}],
            ("evaluate", "test"): [
                {"auc": 0.6, "log_loss": 0.51},
                {"auc": 0.7, "log_loss": 0.31},
                {"auc": 0.9, "log_loss": 0.11},
            ],
        },
    )
    contender = train_throughput.Contender("fuxictr", worker)
    for _ in range(3):
        contender.epoch()
    assert contender.quality() == {"auc": 0.7, "log_loss": 0.31}


def test_a_peer_that_fails_has_its_error_in_the_table_and_no_ratio():
    broken = train_throughput.Contender(
        "fuxictr", StubWorker({}, {("epoch",): [peers.PeerError("OSError: no space")]})
    )
    broken.epoch()
    broken.epoch()
    assert broken.row() == {"contender": "fuxictr", "error": "OSError: no space"}
    fine = SimpleNamespace(error="", seconds=[1.0, 1.0])
    assert train_throughput._ratios({"fuxictr": broken, "tamis": fine}, "deepfm", "1e5") == {}


def test_ratios_pair_epochs_of_one_round_under_the_agreed_names():
    contenders = {
        "fuxictr": SimpleNamespace(error="", seconds=[99.0, 8.0, 9.0]),
        "tamis": SimpleNamespace(error="", seconds=[1.0, 2.0, 3.0]),
        "tamis_fp32": SimpleNamespace(error="", seconds=[1.0, 4.0, 4.5]),
        "deepctr_torch": SimpleNamespace(error="", seconds=[99.0, 4.0, 3.0]),
    }
    ratios = train_throughput._ratios(contenders, "dcn_v2", "1e5")
    # fuxictr: 8/2 = 4 and 9/3 = 3; float32: 8/4 = 2 and 9/4.5 = 2; deepctr: 4/2 = 2 and 3/3 = 1.
    assert ratios["fuxictr/dcn_v2/1e5"].median == 3.5
    assert ratios["fuxictr/dcn_v2/1e5"].pairs == 2
    assert ratios["fuxictr/dcn_v2/1e5/fp32"].median == 2.0
    assert ratios["deepctr_torch/dcn_v2/1e5"].median == 1.5
    assert set(ratios) == {
        f"{peer}/dcn_v2/1e5{suffix}" for peer in peers.PEERS for suffix in ("", "/fp32")
    }


def test_float32_ratio_is_the_default_where_the_default_is_float32():
    contenders = {
        "fuxictr": SimpleNamespace(error="", seconds=[1.0, 8.0]),
        "tamis": SimpleNamespace(error="", seconds=[1.0, 2.0]),
    }
    ratios = train_throughput._ratios(contenders, "deepfm", "1e6")
    assert ratios["fuxictr/deepfm/1e6"] == ratios["fuxictr/deepfm/1e6/fp32"]


def test_claims_cover_every_peer_model_and_size():
    assert train_throughput.BARS["fuxictr/deepfm/1e5"] == 2.5
    assert train_throughput.BARS["deepctr_torch/dcn_v2/1e7"] == 15.0
    assert len(train_throughput.BARS) == 2 * 2 * 3
