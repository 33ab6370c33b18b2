"""What answers requests at one moment: a bundle, the ads that may be shown, the funnel of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tamis.data.batch import Batch
from tamis.data.schema import Schema
from tamis.errors import ArtifactError
from tamis.funnel.bundle import Bundle
from tamis.funnel.funnel import Funnel
from tamis.serving.columns import Columns
from tamis.serving.live_ads import Catalogue, LiveAds
from tamis.serving.records import RawRow, StoredAd
from tamis.serving.refused import RefusedError
from tamis.serving.request_encoder import RequestEncoder
from tamis.serving.users import OnlineColumns


class ServedBundle:
    """A bundle with all that does not change while it serves."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Prepare to serve.

        Args:
            bundle: What is to serve.
            threads: Threads that will answer at the same time.

        Raises:
            ArtifactError: The bundle was published without the ads' columns, or takes ids for
                numbers.
            ConfigError: The schema has no field for one of its online features.
        """
        blueprint = bundle.blueprint
        self.bundle = bundle
        self._threads = threads
        self.release = bundle.release
        self.schema: Schema = blueprint.encoders.schema
        self.catalogue = Catalogue(blueprint)
        self.online = OnlineColumns(blueprint.online, self.schema)
        user = self.schema.roles.user
        self.user_columns = Columns(self.schema, ("user",), without=(user,))
        """What a request may say of its user beside the id."""
        self.context_columns = Columns(self.schema, ("context",), without=(user,))
        """What a request may say beside."""
        all_columns = Columns(self.schema)
        for name in (user, self.schema.roles.item):
            if not all_columns.is_id(name):
                raise ArtifactError(
                    f"bundle: field of column {name!r} must be categorical to be served, since it "
                    f"holds ids, got another kind. Mend the schema, and train and publish anew."
                )
        self._kinds = all_columns.kinds
        self._encoder = RequestEncoder(blueprint.encoders)

    def check_groups(self, row: RawRow, *, where: str) -> None:
        """Refuse histories whose columns do not go together.

        Who says one column of a group says all of them: those of events know nothing of it.

        Args:
            row: What is said of user, context or an ad.
            where: Path of it in the request.

        Raises:
            RefusedError: A column of a group is missing, or has fewer events than another.
        """
        for members in self.schema.sequence_groups.values():
            said = [item.source for item in members if item.source in row]
            if not said:
                continue
            counts = {
                len(value) if isinstance(value := row.get(item.source), list) else 0
                for item in members
                if self._kinds[item.source] == "categories"
            }
            if len(said) < len(members) or len(counts) > 1:
                raise RefusedError(
                    422,
                    f"{where}.{said[0]}",
                    f"must have as many events as {', '.join(item.source for item in members)}: "
                    f"they are columns of one history. Send all of them.",
                )

    def encode(self, rows: Sequence[RawRow]) -> list[Batch]:
        """The features of requests, one row each, as the encoders of training give them.

        Whoever has several encodes them together, as some of the cost is the same for any number.
        """
        return self._encoder.encode(rows)

    def live(self, stored: Mapping[str, StoredAd | None]) -> "Live":
        """The funnel over the bundle's ads and the store's.

        Raises:
            TamisError: An ad of the store has no place in this funnel, such as one that is billed
                by what no stage predicts.
        """
        ads = self.catalogue.live(stored)
        funnel = None
        if ads.blueprint is not None:
            funnel = ads.blueprint.build(callers=self._threads)
        return Live(served=self, ads=ads, funnel=funnel)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Live:
    """One state of a served funnel; a change makes another, so that no request sees half of it."""

    served: ServedBundle
    """The bundle."""
    ads: LiveAds
    """The ads."""
    funnel: Funnel | None
    """Answers by ad row; None where there is no ad."""
