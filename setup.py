"""Lets older tools install the project; everything is declared in pyproject.toml."""

from setuptools import setup

setup()
