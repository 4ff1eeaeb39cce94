"""Bytes in, batches out: a dataset becomes WebDataset tars once and streams from anywhere."""
