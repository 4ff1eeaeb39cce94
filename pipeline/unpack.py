"""`python -m pipeline.unpack`: the entry point that rendered jobs call."""

import sys

from pipeline.submission import bootstrap

if __name__ == "__main__":
    bootstrap.main(sys.argv[1:])
