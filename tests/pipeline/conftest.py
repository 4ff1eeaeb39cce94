"""Servers for the tests of this folder."""

from tests.support.s3 import _proxy, bucket, faults, moto  # noqa: F401
