"""The installed package: distributions built from these sources, away from the checkout."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import grucore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def copy_packages(target):
    for name in ("grucore", "kernels"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, so that nothing is left in the checkout."""
    return built(tmp_path_factory)


def copy_sources(tmp_path_factory):
    copy = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    copy_packages(copy)
    return copy


def built(tmp_path_factory, copy=None, **environment):
    copy, target = copy or copy_sources(tmp_path_factory), tmp_path_factory.mktemp("wheel")
    quick = copy / "c++"  # "builds" the library that the same setup.py built for this checkout, if it did
    library = ROOT / "kernels" / "native" / "libgrucore.so"
    by_hand = f'for last; do :; done\ncase "$*" in *-shared*) cp "{library}" "$last";; *) : > "$last";; esac\n'
    quick.write_text("#!/bin/sh\n" + (by_hand if library.exists() else 'exec c++ "$@" -O0\n'))
    quick.chmod(0o755)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, copy]
    subprocess.run(command, check=True, env={**os.environ, "CXX": str(quick), **environment})
    (wheel,) = target.iterdir()
    return wheel


def test_wheel_claims_grucore_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"grucore"}
    for folder, package in (("grucore", "grucore"), ("kernels", "grucore/kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert {"grucore/py.typed", "grucore/kernels/triton/plans.json"} <= set(names)


@pytest.mark.skipif(
    not shutil.which("c++") or platform.machine() not in ("x86_64", "aarch64"), reason="nothing to build with or for"
)
def test_the_native_kernels_are_built_where_there_is_a_compiler(wheel):
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    assert "grucore/kernels/native/libgrucore.so" in zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory):
    """The folder that the archive unpacks to."""
    copy, target = copy_sources(tmp_path_factory), tmp_path_factory.mktemp("sdist")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = target.iterdir()
    with tarfile.open(archive) as file:
        file.extractall(target, filter="data")
    (root,) = (path for path in target.iterdir() if path.is_dir())
    return root


def test_a_source_distribution_has_each_file_once(source_distribution):
    assert source_distribution.name == f"grucore-{grucore.__version__}"
    for path in (ROOT / "kernels" / "native").glob("*.[ch]*"):
        found = [found.relative_to(source_distribution).as_posix() for found in source_distribution.rglob(path.name)]
        assert found == [f"grucore/kernels/native/{path.name}"]


@pytest.mark.exhaustive
def test_a_source_distribution_builds_the_same_wheel(source_distribution, wheel, tmp_path_factory):
    again = built(tmp_path_factory, source_distribution)
    assert again.name == wheel.name and set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {grucore.__version__}\n" in citation
    assert f"\n## [{grucore.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_runs_the_pinned_tools():
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = re.findall(r"\[([\w-]+)==([\w.]+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 3 and not [hook for hook in hooks if pins[hook[0]] != hook[1]]


@pytest.mark.parametrize(
    "fails_at", [None, *(pytest.param(at, marks=pytest.mark.exhaustive) for at in ("backward.cpp", "-shared"))]
)
def test_without_a_compiler_it_installs_and_says_so(fails_at, tmp_path_factory, tmp_path):
    """Without a compiler, or with one that fails half-way, no part of a library is installed."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    if fails_at:
        compiler.write_text(f'#!/bin/sh\nfor last; do :; done\ncase "$*" in *{fails_at}*) exit 1;; esac\n: > "$last"\n')
        compiler.chmod(0o755)
    wheel = built(tmp_path_factory, CXX=str(compiler))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".o", ".partial"))]
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import grucore, torch
torch.set_grad_enabled(False)
print(grucore.GRU(3, 4).explain_backend(torch.ones(5, 2, 3)))
"""
    assert "name='eager', reason='the native kernels are not built: they need" in run_installed(tmp_path, code)


def run_installed(target, code):
    """Runs code with grucore only from the wheel."""
    flags = ["-c", f"import sys; sys.path.insert(0, {str(target)!r})\n" + code]
    result = subprocess.run([sys.executable, "-I", *flags], cwd=target, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def test_wheel_runs_forward_and_backward(installed):
    code = """
import grucore, torch
assert grucore.__file__.startswith(sys.path[0]) and grucore.kernels.__file__.startswith(sys.path[0])
layer, x = grucore.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
layer(x)[0].sum().backward()
print(x.grad.abs().sum() > 0, sys.modules.get("kernels"))
"""
    assert run_installed(installed, code).split() == ["tensor(True)", "None"]


def test_an_installation_is_only_read(wheel, tmp_path):
    """The user may not be allowed to write there."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path, *before):
        path.chmod(path.stat().st_mode & ~0o222)
    code = """
sys.dont_write_bytecode = True
import grucore, torch
layer, x = grucore.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
layer(x)[0].sum().backward()
print(layer.explain_backend(x).name)
"""
    name = run_installed(tmp_path, code).strip()
    assert name == ("native" if "any" not in wheel.name else "eager") and sorted(tmp_path.rglob("*")) == before
    for path in (tmp_path, *before):
        path.chmod(path.stat().st_mode | 0o200)


def test_runs_from_a_zip(wheel):
    """Like zipapp, pex and Spark: the package has no files of its own."""
    code = """
import grucore, torch
layer, x = grucore.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
layer(x, lengths=[5, 2])[0].sum().backward()
print(x.grad.abs().sum() > 0, grucore.__file__.startswith(sys.path[0]))
"""
    flags = ["-I", "-c", f"import sys; sys.path.insert(0, {str(wheel)!r})\n" + code]
    result = subprocess.run([sys.executable, *flags], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["tensor(True)", "True"]


def test_converters_are_there_without_an_import_of_their_own(installed):
    code = """
import grucore
assert "grucore.convert" not in sys.modules
print(grucore.convert.to_onnx.__name__, hasattr(grucore, "converter"))
"""
    assert run_installed(installed, code).split() == ["to_onnx", "False"]


def test_import_brings_torch_and_numpy_alone(installed):
    code = """
import torch, numpy
before = set(sys.modules)
import grucore
roots = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(root for root in roots if root not in sys.stdlib_module_names and root not in ("torch", "numpy")))
"""
    assert run_installed(installed, code).strip() == "['grucore']"


def test_a_checkout_runs_uninstalled(tmp_path):
    """On a machine without a network, the checkout's root on the path is enough."""
    copy_packages(tmp_path)
    (tmp_path / "tests").mkdir()
    code = """
from importlib.util import find_spec
import grucore, torch
print(grucore.GRU(3, 4)(torch.ones(2, 1, 3))[0].shape, grucore.kernels.__file__, find_spec("grucore.tests"))
"""
    printed = run_installed(tmp_path, code)
    assert "torch.Size([2, 1, 4])" in printed and str(tmp_path / "grucore" / "kernels") in printed
    assert "None" in printed, "nothing but the package may be importable as a part of it"
