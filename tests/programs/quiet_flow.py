"""A flow that does nothing, for tests of what starts flows."""

from prefect import flow


@flow
def quiet() -> None:
    """Nothing."""
