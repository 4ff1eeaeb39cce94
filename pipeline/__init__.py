"""Making a model: command line, configuration, training, evaluation, tracking, registry."""

__version__ = "0.1.0"
