"""Why a request is not answered: one exception for all answers of 4xx and 503."""

import contextlib
from collections.abc import Iterator

from tamis.errors import StoreError, TamisError


class RefusedError(TamisError):
    """A request that is answered with an error; it names the field, and never what stood in it."""

    def __init__(self, status: int, field: str, message: str, *, retry_after_s: int = 0) -> None:
        """Say why.

        Args:
            status: HTTP status, from 400.
            field: What of the request is to blame, as a path such as ``body.user.id``; ``server``
                where nothing is.
            message: What must hold, and what to do; no value of the request in it.
            retry_after_s: Seconds after which to ask again; 0: asking again does not help.
        """
        super().__init__(f"{field}: {message}")
        self.status, self.field, self.message = status, field, message
        self.retry_after_s = retry_after_s


def no_such_ad() -> RefusedError:
    """What a request for an ad is told where there is none."""
    return RefusedError(404, "path.ad", "must be a live ad; there is none of that id.")


@contextlib.contextmanager
def bundle_must_serve() -> Iterator[None]:
    """Make 409 of what is wrong with the bundle of a request, ``body.release``.

    Raises:
        RefusedError: The bundle cannot serve, or the request was refused already.
        StoreError: The store is not there, which is no fault of the bundle.
    """
    try:
        yield
    except (RefusedError, StoreError):
        raise
    except TamisError as error:
        raise RefusedError(
            409, "body.release", f"must be a bundle that can serve, got {error}"
        ) from error
