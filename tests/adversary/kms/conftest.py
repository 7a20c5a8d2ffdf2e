"""The world that a KMS is attacked in: that of its unit tests."""

from tests.unit.kms.conftest import make_world, world

__all__ = ["make_world", "world"]
