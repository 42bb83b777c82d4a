"""The step, what it minimises, how it is saved and stopped."""
