"""A live scene between calls."""
