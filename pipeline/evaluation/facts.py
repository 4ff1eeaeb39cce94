"""What an evaluation is of: its pairs, and the facts that its numbers depend on."""
