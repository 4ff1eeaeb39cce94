"""Servers for the tests of this folder."""

from tests.support.s3 import (  # noqa: F401
    _proxy,
    both,
    bucket,
    faults,
    moto,
    swift,
)
