"""Servers for the tests of this folder."""

from tests.support.s3 import bucket, moto  # noqa: F401
