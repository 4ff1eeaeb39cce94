"""The commands that make sharded sets and mask sets."""
