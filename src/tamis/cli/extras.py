"""Optional parts of the installation: what lacks is named, with the line that installs it."""

import contextlib
from collections.abc import Iterator

from tamis.errors import ConfigError


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turn a failing import of the block into the line that mends it.

    Args:
        name: The extra that the imports belong to.

    Raises:
        ConfigError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name}: must be installed for this, got no such package. Run "
            f"pip install '.[{name}]' in the checkout of tamis."
        ) from error
