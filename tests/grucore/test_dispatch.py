"""The implementation that runs a call, and why; an explicit one is never replaced by another."""

import re
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

from grucore import GRU, InputError, direct, dispatch, functional, options
from grucore.kernels import Form
from grucore.kernels.native.library import UNAVAILABLE
from grucore.kernels.triton.plan import H100

X = torch.randn(5, 2, 3)
RESET = torch.ones(5, 2, dtype=torch.bool)


def test_explain_backend_names_what_runs_and_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "NO_NATIVE", None)  # as on a machine with a compiler
    with torch.no_grad():
        assert GRU(3, 4).explain_backend(X) == ("native", "the implementation for cpu tensors")
    layer = GRU(3, 4, dtype=torch.complex64)
    assert layer.explain_backend(X.cfloat())[0] == "reference" and "complex64" in layer.explain_backend(X.cfloat())[1]
    assert GRU(3, 4, backend="eager").explain_backend(X).reason == "asked for"
    with pytest.raises(RuntimeError, match="need a CUDA device, but the tensors are on cpu"):
        GRU(3, 4, backend="triton")(X)


KERNELS, REGULARISED = ("eager", "regularised") if UNAVAILABLE else ("native", "native")
CALLS = {  # a layer's options, a call, and the implementation of "auto"
    "plain": ({}, lambda f: f(X), KERNELS),
    "inference": ({}, torch.no_grad()(lambda f: f(X)), KERNELS),
    "eager": ({"backend": "eager"}, lambda f: f(X), "eager"),
    "batch first": ({"batch_first": True}, lambda f: f(X, mask=torch.ones(5, 2).bool()), KERNELS),
    "unbatched": ({}, lambda f: f(X[:, 0], lengths=3), KERNELS),
    "packed": ({}, lambda f: f(pack_sequence([X[:, 0]])), KERNELS),
    "lengths": ({}, lambda f: f(X, lengths=[5, 3]), KERNELS),
    "resets": ({}, lambda f: f(X, reset=RESET, reset_state=torch.zeros(1, 2, 4)), KERNELS),
    "vmap": ({}, lambda f: vmap(lambda x: (f(x), x)[1], in_dims=1)(X[:, :, None]), "reference"),
    "zoneout": ({"zoneout": 0.1}, lambda f: f(X), REGULARISED),
    "normalised": ({"zoneout": 0.1, "layer_norm": True}, lambda f: f(X), REGULARISED),
    "activation": ({"activation": "relu"}, lambda f: f(X), REGULARISED),
    "vmap of relu": (
        {"activation": "relu"},
        lambda f: vmap(lambda x: (f(x), x)[1], in_dims=1)(X[:, :, None]),
        "regularised",
    ),
    "explicit": ({"backend": "reference"}, lambda f: f(X), "reference"),
}


@pytest.mark.parametrize("given, call, name", CALLS.values(), ids=CALLS)
def test_the_explanation_is_what_the_same_call_runs(given, call, name, monkeypatch):
    layer, ran = GRU(3, 4, **given), []
    modules = (
        ("eager", functional.autograd, "layer"),
        ("native", functional.autograd, "native_layer"),
        ("native", direct, "native_layer"),
        ("reference", functional.equations.reference, "gru_layer"),
        ("regularised", functional.equations.regularised, "gru_layer"),
    )
    for label, module, attribute in modules:
        run = getattr(module, attribute)
        monkeypatch.setattr(module, attribute, lambda *a, run=run, label=label: (ran.append(label), run(*a))[1])
    explained = []
    call(lambda *a, **k: explained.append(layer.explain_backend(*a, **k)))
    call(layer)
    assert explained[0].name == ran[0] == name


def test_kernels_with_ptx_are_not_for_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    request = dispatch.Request(torch.device("cuda"), torch.float32, 20, Form())
    assert dispatch.choose("auto", request).name == "eager"
    with pytest.raises(RuntimeError, match="contain PTX"):
        dispatch.choose("triton", request)


NOISE = ("recurrent_dropout", "zoneout")
CHOICES = [
    ("auto", "cuda", torch.bfloat16, {}, H100, "triton", "the implementation for cuda tensors"),
    ("auto", "cuda", torch.float32, {"has_steps": True}, H100, "triton", "the implementation for cuda tensors"),
    ("auto", "cuda", torch.bfloat16, {}, H100._replace(capability=75), "eager", "compute capability 7.5"),
    ("auto", "cuda", torch.float64, {}, H100, "eager", "the dtype is torch.float64"),
    ("auto", "cuda", torch.float64, {"has_steps": True}, H100, "reference", "the dtype is torch.float64"),
    ("auto", "cuda", torch.float32, {"form": Form(reset_after=False)}, H100, "eager", "no reset_after=False"),
    ("auto", "mps", torch.float32, {}, H100, "eager", "the implementation for mps tensors"),
    ("auto", "mps", torch.float32, {"has_steps": True}, H100, "reference", "would wait for mps"),
    ("reference", "cuda", torch.float32, {}, H100, "reference", "asked for"),
    ("triton", "cuda", torch.float16, {}, H100, "triton", "asked for"),
    ("triton", "cuda", torch.float16, {"regularised": NOISE}, H100, "triton", "asked for"),
    ("auto", "cuda", torch.float32, {"regularised": NOISE}, H100, "triton", "the implementation for cuda tensors"),
    ("auto", "cuda", torch.float64, {"regularised": NOISE}, H100, "regularised", "the dtype is torch.float64"),
    ("auto", "cuda", torch.float32, {"regularised": (*NOISE, "layer_norm")}, H100, "regularised", "no layer_norm$"),
]


def request_of(device, dtype, hidden_size=100_000, **others):
    return dispatch.Request(torch.device(device), dtype, hidden_size, **{"form": Form(), **others})


@pytest.mark.parametrize("case", CHOICES, ids=str)
def test_choice_of_backend(case, monkeypatch):
    backend, device, dtype, others, limits, name, reason = case
    monkeypatch.setattr(dispatch.plan, "device", lambda _: limits)
    monkeypatch.setattr(dispatch.first_use, "obstacle", lambda *_, **__: None)
    choice = dispatch.choose(backend, request_of(device, dtype, **others))
    assert choice.name == name and re.search(reason, choice.reason)


@pytest.mark.parametrize(
    "dtype, others, limits, message",
    [
        (torch.float64, {}, H100, "dtype is torch.float64"),
        (torch.float32, {"form": Form(reset_after=False)}, H100, "no reset_after=False"),
        (torch.bfloat16, {}, H100._replace(capability=75), "compute capability 7.5"),
    ],
    ids=str,
)
def test_an_explicit_backend_never_falls_back(dtype, others, limits, message, monkeypatch):
    monkeypatch.setattr(dispatch.plan, "device", lambda _: limits)
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: .*{message}"):
        dispatch.choose("triton", request_of("cuda", dtype, hidden_size=4, **others))


REFUSED = {  # only PyTorch's own operators can do these: a layer's options and a call
    "gates": ({}, lambda layer: layer.trace(X), "no gates to return"),
    "vmap": ({}, lambda layer: vmap(lambda x: layer(x)[0], in_dims=1)(X[:, :, None]), "no rules for torch.func"),
    "vmap of a cell": ({}, lambda layer: vmap(layer.step)(X, X.new_zeros(5, 1, 2, 4)), "no rules for"),
    "layer norm": ({"layer_norm": True}, lambda layer: layer(X), "no layer_norm"),
    "explained": ({"layer_norm": True}, lambda layer: layer.explain_backend(X), "no layer_norm"),
    "several": ({"layer_norm": True, "activation": "relu"}, lambda layer: layer(X), "no layer_norm and activation"),
}


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("given, call, message", REFUSED.values(), ids=REFUSED)
def test_an_explicit_backend_that_cannot_serve_a_call_raises(given, call, message, backend):
    with pytest.raises(RuntimeError, match=f"backend='{backend}' cannot run: the {backend} kernels have {message}"):
        call(GRU(3, 4, backend=backend, **given))
    call(GRU(3, 4, **given))


def test_a_trained_step_of_many_units_is_left_to_pytorch():
    """Only where options act, and only by "auto"."""
    many = {"hidden_size": 512, "sizes": (1, 2, 1), "wants_gradient": True}
    for given, name in (({"regularised": ("layer_norm",)}, REGULARISED), ({}, KERNELS)):
        step = request_of("cpu", torch.float32, **(many | given))
        want = {"native": "regularised"}.get(name, name) if given else name
        assert dispatch.choose("auto", step).name == want
        assert dispatch.choose("auto", step._replace(wants_gradient=False)).name == name
        assert dispatch.choose("auto", step._replace(sizes=(2, 2, 1))).name == name
        assert given == {} or dispatch.choose_step("auto", step, in_place=False).name == want
        assert name != "native" or dispatch.choose("native", step).name == "native"


def test_the_reference_says_what_it_is_not():
    with pytest.raises(RuntimeError, match="backend='reference' cannot run: the equations have no zoneout"):
        GRU(3, 4, backend="reference", zoneout=0.1)(X)


def test_a_backend_that_is_set_later_is_checked():
    layer = GRU(3, 4)
    layer.backend = "cudnn"
    with pytest.raises(InputError, match=r"backend must be one of 'auto', 'native', .* got 'cudnn'"):
        layer(X)


@pytest.mark.parametrize(
    "installed, message", [(None, "Triton is not installed"), ("3.3.1", "need Triton 3.4 or newer, but 3.3.1 is")]
)
def test_a_missing_or_old_triton_is_named(installed, message, monkeypatch):
    monkeypatch.setattr(dispatch, "NO_TRITON", dispatch._no_triton(installed))
    with pytest.raises(RuntimeError, match=message):
        GRU(3, 4, backend="triton")(X)
    assert dispatch.choose("auto", request_of("cuda", torch.float32)).name == "eager"


@pytest.mark.parametrize("others, found", [({"triton": ["triton-windows"]}, "3.5.1"), ({}, None)])
def test_triton_under_another_name(others, found, monkeypatch):
    """The packages for ROCm and Windows have other names; and a folder `triton` is not a package."""

    def version(name):
        if name == "triton":
            raise PackageNotFoundError(name)
        return "3.5.1"

    monkeypatch.setattr(dispatch, "find_spec", lambda name: True)
    monkeypatch.setattr(dispatch, "version", version)
    monkeypatch.setattr(dispatch, "packages_distributions", lambda: others)
    assert dispatch._version_of_triton() == found


def test_precision_follows_torch_unless_given(monkeypatch):
    for allowed, resolved in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert options.form_of(options.Options(), torch.device("cuda")).precision == resolved
        assert options.form_of(options.Options(precision="ieee"), torch.device("cuda")).precision == "ieee"
        assert options.form_of(options.Options(), torch.device("cpu")).precision == "ieee"


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "rnn"), reason="before torch 2.9")
def test_precision_follows_the_switch_of_rnns():
    rnn, conv = torch.backends.cudnn.rnn, torch.backends.cudnn.conv
    before = rnn.fp32_precision, conv.fp32_precision
    try:
        for rnn.fp32_precision, conv.fp32_precision in (("tf32", "ieee"), ("ieee", "tf32")):
            assert options.form_of(options.Options(), torch.device("cuda")).precision == rnn.fp32_precision
    finally:
        rnn.fp32_precision, conv.fp32_precision = before


@pytest.mark.parametrize("name", ["lengths", "mask", "reset"])
def test_flags_on_another_device_are_not_read(name):
    layer, x = GRU(3, 4, device="meta"), torch.randn(5, 2, 3, device="meta")
    shape, dtype = ((2,), torch.long) if name == "lengths" else ((5, 2), torch.bool)
    assert layer.explain_backend(x).name == "eager"
    assert layer.explain_backend(x, **{name: torch.ones(shape, dtype=dtype, device="meta")}).name == "reference"
