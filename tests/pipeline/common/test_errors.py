"""An error as one line."""

import pytest

from pipeline.common.errors import ConfigError, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines\tof text "), "two lines of text"),
        (ConfigError("batch=0 is too small"), "batch=0 is too small"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left", "/data"), "[Errno 28] No space left: '/data'"),
        (ConnectionResetError("\n"), "ConnectionResetError"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_or_its_types_name(error, line):
    assert one_line(error) == line
