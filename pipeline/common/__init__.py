"""What several packages need: errors, secrets, locks, signals, lines for the terminal."""
