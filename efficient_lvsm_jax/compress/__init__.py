"""Attention that reads less, numbers of few bits, and what is learned to make up for both."""
