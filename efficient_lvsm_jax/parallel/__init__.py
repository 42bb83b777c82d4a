"""The mesh, which device holds what, several processes."""
