"""The packages; `grucore/kernels` is a link to `kernels/`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["grucore", "grucore.*"]),
    package_data={"grucore": ["py.typed"], "grucore.kernels.triton": ["*.json"]},
)
