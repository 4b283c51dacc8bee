"""The package mapping: `kernels/` is installed as `grucore.kernels`. All else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["grucore", "grucore.convert", "grucore.kernels"],
    package_dir={"grucore.kernels": "kernels"},
    package_data={"grucore.kernels": ["*.json"]},
)
