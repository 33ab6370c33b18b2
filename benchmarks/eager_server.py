"""The peer of ``serving.py``: a bundle's funnel as eager PyTorch for each request, in FastAPI.

What a competent person writes around the same trained modules: vocabularies as dictionaries, one
matrix of all ads' retrieval vectors, ``torch.topk``, models called on a batch of the candidates,
``inference_mode``, and a route that FastAPI runs in its threads, with one thread for each
computation. With ``--cache-early`` the early stage's ad tower, too, has run before. Bids, auction
and answers are those of the bundle, so that both sides give the same ads. Nothing is written down:
no store, no events, no metrics.
"""

import argparse
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor

from tamis.data.batch import Batch, Jagged
from tamis.data.sides import side_batch
from tamis.data.vocabulary import FieldCounts
from tamis.funnel.auction import Bids, run_auction
from tamis.funnel.bundle import read_bundle
from tamis.funnel.plan import ad_features
from tamis.funnel.plans import EarlyStagePlan, RankerPlan
from tamis.funnel.retrieval_plans import TwoTowerPlan
from tamis.funnel.value import ValueFunction
from tamis.models.early_serving import label_tasks, served_logits
from tamis.models.early_stage import EarlyStage
from tamis.models.output import probabilities_of
from tamis.models.two_tower import TwoTower
from tamis.process import prepare_process
from tamis.serving.live_ads import codes_of

ADS_AT_A_TIME = 4096


class User(BaseModel):
    """Who asks."""

    id: str
    features: dict[str, Any]


class RankBody(BaseModel):
    """A request for ads."""

    request_id: str
    user: User
    context: dict[str, Any]
    k: int


class EagerFunnel:
    """Two towers, an early-stage ranker and a final ranker, called one after another."""

    def __init__(self, bundle: Path, *, cache_early: bool) -> None:
        """Load everything, and encode the ads for retrieval."""
        blueprint = read_bundle(bundle).blueprint
        self.keeps = [stage.budget.keep for stage in blueprint.stages]
        towers, early, final = (stage.plan for stage in blueprint.stages)
        assert isinstance(towers, TwoTowerPlan)
        assert isinstance(early, EarlyStagePlan)
        assert isinstance(final, RankerPlan)
        self.encoders, self.inventory = blueprint.encoders, blueprint.inventory
        self.schema, self.spec = self.encoders.schema, self.encoders.spec
        self.rows = {
            name: {text: row for row, text in enumerate(found.values.to_pylist(), start=1)}
            for name, found in self.encoders.vocabularies.items()
            if found.values is not None
        }
        self.ads = ad_features(self.inventory, self.encoders, self.encoders)
        self.value = ValueFunction(blueprint.weights)
        self.reserve = blueprint.reserve
        assert isinstance(towers.model.module, TwoTower)
        assert isinstance(early.model.module, EarlyStage)
        self.early, self.final = early.model.module, final.model.module
        self.head = early.settings.head
        first_alone = (1.0, *(0.0 for _ in self.spec.tasks[1:]))
        self.queries = towers.model.module.queries(first_alone)
        self.log_bid = torch.from_numpy(np.log(self.inventory.attributes.bid)).float()
        nobody = self.encode(User(id="", features={}), {})
        rows = torch.arange(len(self.inventory)).split(ADS_AT_A_TIME)
        with torch.inference_mode():
            self.items = torch.cat(
                [
                    towers.model.module.encode_items(
                        self.ads.pairs(nobody, torch.zeros_like(ads), ads)
                    )
                    for ads in rows
                ]
            )
            self.parts = self.early.export(head=self.head) if cache_early else None
            if self.parts is not None:
                found = [self.parts.embed_ads(self.ads.of_ads(ads)) for ads in rows]
                self.ad_vectors = torch.cat(found)

    def encode(self, user: User, context: dict[str, Any]) -> Batch:
        """One row of features; the ad's are left at 0."""
        said = {**user.features, **context, "user_id": user.id}
        ids, numbers = [], []
        for item in self.schema.fields:
            if item.kind == "categorical":
                ids.append(self.rows[item.name].get(said.get(item.source, ""), 0))
            elif item.kind == "numeric":
                value = np.array([said.get(item.source, np.nan)], np.float64)
                numbers.append(self.encoders.numeric[item.name].encode(value, FieldCounts())[0])
        sequences = {}
        for name, members in self.schema.sequence_groups.items():
            columns = [
                [self.rows[item.shares].get(text, 0) for text in said.get(item.source, ())]
                for item in members
            ]
            events = torch.tensor(columns, dtype=torch.int64).T
            sequences[name] = Jagged(values=events, offsets=torch.tensor([0, len(events)]))
        return Batch(
            numeric=torch.tensor([numbers], dtype=torch.float32),
            ids=torch.tensor([ids]),
            labels=torch.zeros(1, len(self.spec.tasks)),
            weights=torch.ones(1),
            sequences=sequences,
        )

    @torch.inference_mode()
    def rank(self, body: RankBody) -> list[dict[str, Any]]:
        """The ads of one request, best first."""
        features = self.encode(body.user, body.context)
        scores = self.items @ self.queries.encode(features)[0] + self.log_bid
        ads = scores.topk(self.keeps[0]).indices
        ads = ads[
            self.values(self.early_predictions(features, ads), ads).topk(self.keeps[1]).indices
        ]
        pairs = self.ads.pairs(features, torch.zeros_like(ads), ads)
        predictions = probabilities_of(self.final(pairs).logits, self.spec.tasks)
        best = self.values(predictions, ads).topk(self.keeps[2]).indices
        return self.auction(predictions[best], ads[best].numpy(), body)

    def early_predictions(self, features: Batch, ads: Tensor) -> Tensor:
        """Predictions (n, L) of the early stage."""
        if self.parts is None:
            pairs = self.ads.pairs(features, torch.zeros_like(ads), ads)
            logits = served_logits(self.early(pairs).logits, self.spec.tasks, self.head)
        else:
            user = self.parts.embed_user(side_batch(features, self.spec, "user"))
            query = self.parts.query(user, side_batch(features, self.spec, "context"))
            logits = self.parts.scorer(query, self.ad_vectors[ads])
        return probabilities_of(logits, label_tasks(self.spec.tasks))

    def values(self, predictions: Tensor, ads: Tensor) -> Tensor:
        """Total values (n,)."""
        by_task = self.by_task(predictions)
        return torch.from_numpy(
            self.inventory.attributes.total_value(self.value, by_task, ads.numpy())
        )

    def by_task(self, predictions: Tensor) -> dict[str, Any]:
        """Columns of predictions by name."""
        return {task.name: predictions[:, at].numpy() for at, task in enumerate(self.spec.tasks)}

    def auction(self, predictions: Tensor, ads: Any, body: RankBody) -> list[dict[str, Any]]:  # noqa: ANN401
        """Winners and prices."""
        table = self.inventory.attributes
        rate, offset = table.linear_value(self.value, self.by_task(predictions), ads)
        bids = Bids(
            ads=ads, advertiser=table.advertiser[ads], bid=table.bid[ads], rate=rate, offset=offset
        )
        seed = int(codes_of([body.request_id])[0])
        slate = run_auction(bids, slots=body.k, reserve=self.reserve, seed=seed)
        return [
            {"ad": f"a{ad}", "price": price}
            for ad, price in zip(slate.ads.tolist(), slate.prices.tolist(), strict=True)
        ]


def main() -> None:
    """Serve until the process is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cache-early", action="store_true", help="run the early ad tower before")
    options = parser.parse_args()
    prepare_process(1)
    funnel = EagerFunnel(options.bundle, cache_early=options.cache_early)
    app = FastAPI()

    @app.post("/v1/rank")
    def rank(body: RankBody) -> dict[str, Any]:
        return {"ads": funnel.rank(body)}

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    # As asyncio does for sockets of its own: else head and body of an answer lie 40 ms apart.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]};", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
