"""The closed schema of every command, and how arguments become a configuration."""
