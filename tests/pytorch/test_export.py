"""torch.export and AOTInductor, T and B dynamic."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim, export, load, save

from grucore import GRU
from grucore.kernels.native.library import UNAVAILABLE

pytestmark = pytest.mark.slow

STEPS, ROWS = Dim("T", min=1, max=2**20), Dim("B", min=1, max=2**20)
SHAPES = [(1, 1), (17, 7), (5, 2)]


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.gru = GRU(3, 4, num_layers=2, bidirectional=True, **options)

    def forward(self, x, lengths):
        y, h_n = self.gru(x, lengths=lengths)
        return y.sin(), self.gru.final_state(h_n)


def inputs(T, B):
    return torch.randn(T, B, 3), torch.randint(0, T + 1, (B,))


def program_of(model):
    return export(model, inputs(5, 2), dynamic_shapes=({0: STEPS, 1: ROWS}, {0: ROWS}))


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = Model()
    return model, program_of(model)


OPTIONS = {"layer_norm": True, "zoneout": 0.1, "activation": "relu"}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # in torch.export.load of 2.11
@pytest.mark.parametrize(
    "options",
    [{}, pytest.param(OPTIONS, marks=pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or ""))],
    ids=str,
)
def test_export_is_one_operator_a_layer_for_all_sizes(options, tmp_path):
    model = Model(**options).eval()
    program = program_of(model)
    nodes = [node for node in program.graph.nodes if "grucore.gru_layer" in str(node.target)]
    assert len(nodes) == 2
    save(program, tmp_path / "model.pt2")
    loaded = load(tmp_path / "model.pt2").module()
    for shape in SHAPES:
        arguments = inputs(*shape)
        for got, want in zip(loaded(*arguments), model(*arguments), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("kind", [pytest.param("export", marks=pytest.mark.exhaustive), "trace"])
def test_what_was_saved_needs_an_import_where_it_is_loaded(exported, kind, tmp_path):
    """Saved programs behave as documented."""
    model, program = exported
    path = str(tmp_path / "model")
    if kind == "export":
        save(program, path)
    else:
        torch.jit.trace(model, inputs(5, 2)).save(path)
    load = {"export": "torch.export.load(path).module()", "trace": "torch.jit.load(path)"}[kind]
    calls = "(torch.randn(7, 3, 3), torch.tensor([7, 0, 2]))[0].shape)"
    for imports, works in (("torch", False), ("torch, grucore", True)):
        code = f"import warnings, {imports}; warnings.simplefilter('ignore'); path = {path!r}; print({load}{calls}"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ("torch.Size([7, 3, 8])" in result.stdout) is works, result.stderr


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_ahead_of_time(exported, tmp_path):
    model, program = exported
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "compiled.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    for shape in SHAPES:
        arguments = inputs(*shape)
        for got, want in zip(compiled(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(got, want)
