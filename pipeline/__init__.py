"""Making a model: command line, configuration, training, evaluation, tracking, registry."""
