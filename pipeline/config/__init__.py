"""The closed schema of every command, and how words become a configuration."""
