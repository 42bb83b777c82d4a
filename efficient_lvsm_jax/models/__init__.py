"""The families, and the contract they keep."""
