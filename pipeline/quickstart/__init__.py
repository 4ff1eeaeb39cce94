"""The whole path on photographs that a dependency ships."""
