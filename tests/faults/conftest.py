"""The same installations as the acceptance tests have, with faults injected."""

from tests.acceptance.conftest import either_place, new_place, place

__all__ = ["either_place", "new_place", "place"]
