"""The commands that make sharded data sets and mask sets, and sample photographs."""
