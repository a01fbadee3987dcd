"""For Beam's `--setup_file ./setup.py` only: everything is declared in pyproject.toml."""

from setuptools import setup

setup()
