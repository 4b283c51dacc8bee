"""PyTorch's own test material for nn.GRU and nn.GRUCell, with the checks that its test/test_modules.py makes.

The material: constructor arguments and inputs from torch.testing._internal.common_modules, packed sequences included.
Of the checks there, `test_check_inplace` is for modules with an argument `inplace`, which neither has, and
`test_cpu_gpu_parity` is `test_multiple_device_transfer` here.
"""

import copy
import io
import itertools
import warnings

import pytest
import torch
from oracle import assert_near
from oracle import quantity as quantity_of
from torch import nn
from torch.nn.utils.rnn import PackedSequence

with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)  # other tests in this process set flags
    warnings.simplefilter("ignore", ImportWarning)  # it misses hypothesis, which nothing here uses
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

from grucore import GRU, GRUCell

pytestmark = pytest.mark.slow

OURS = {nn.GRU: GRU, nn.GRUCell: GRUCell}
ENTRIES = [info for info in module_db if info.module_cls in OURS]
CASES = [
    pytest.param(info, dtype, training, id=f"{info.name}-{dtype}-{'train' if training else 'eval'}")
    for info in ENTRIES
    for dtype in info.dtypes
    for training in (True, False)
]
FLOAT64 = [case for case in CASES if case.values[1] is torch.float64]
each_case = pytest.mark.parametrize("info, dtype, training", CASES)
each_float64_case = pytest.mark.parametrize("info, dtype, training", FLOAT64)
each_trained_float64_case = pytest.mark.parametrize("info, dtype, training", [c for c in FLOAT64 if c.values[2]])


def inputs(info, dtype, training, device="cpu", requires_grad=True):
    """Pairs of constructor arguments and forward arguments, each pair a `FunctionInput`."""
    packed = {"with_packed_sequence": True} if info.module_cls is nn.GRU else {}
    arguments = {"device": device, "dtype": dtype, "requires_grad": requires_grad, "training": training}
    material = info.module_inputs_func(info, **arguments, **packed)
    return [(each.constructor_input, each.forward_input) for each in material]


def made(info, constructor, dtype, training, kind=None, device="cpu"):
    module = (kind or OURS[info.module_cls])(*constructor.args, **constructor.kwargs)
    return module.to(device).to(dtype).train(training)


def modules(info, dtype, training, **options):
    """A module of ours for each entry of the material, with the arguments to call it with."""
    for constructor, forward in inputs(info, dtype, training, **options):
        assert not forward.kwargs
        yield made(info, constructor, dtype, training), forward.args


def tensors(values):
    """The tensors with gradients in arguments or outputs, including the data of a PackedSequence."""
    values = (values,) if isinstance(values, torch.Tensor | PackedSequence) else values
    return [value.data if isinstance(value, PackedSequence) else value for value in values]


def replaced(values, replacements):
    """The same arguments with other tensors instead of `tensors(values)`."""
    pairs = zip(values, replacements, strict=True)
    return [PackedSequence(new, *old[1:]) if isinstance(old, PackedSequence) else new for old, new in pairs]


def derivatives(module, args, grad_outputs):
    outputs = tensors(module(*args))
    return outputs, torch.autograd.grad(outputs, [*tensors(args), *module.parameters()], grad_outputs)


def close(got, want):
    torch.testing.assert_close(list(got), list(want))


def test_material_is_there():
    assert {info.module_cls for info in ENTRIES} == set(OURS)
    assert all(info.supports_gradgrad for info in ENTRIES)
    of_layer, of_cell = (inputs(info, torch.float32, True) for info in sorted(ENTRIES, key=lambda info: info.name))
    assert len(of_layer) >= 32 and len(of_cell) >= 2
    assert {(c.kwargs["bias"], c.kwargs["batch_first"], c.kwargs["bidirectional"]) for c, _ in of_layer} == set(
        itertools.product((False, True), repeat=3)
    )


@each_case
def test_forward_and_gradients_equal_torch_nn(info, dtype, training):
    """Against torch.nn's module with the same weights, in float64, from the same rounded inputs."""
    for constructor, forward in inputs(info, dtype, training):
        ours = made(info, constructor, dtype, training)
        theirs = made(info, constructor, torch.float64, training, kind=info.module_cls)
        theirs.load_state_dict(ours.state_dict())
        args = forward.args
        args64 = replaced(args, [t.detach().double().requires_grad_() for t in tensors(args)])
        grad_outputs = [torch.randn_like(output) for output in tensors(ours(*args))]
        outputs, grads = derivatives(ours, args, grad_outputs)
        want, grads_want = derivatives(theirs, args64, [grad.double() for grad in grad_outputs])
        for got, output in zip(outputs, want, strict=True):
            assert_near("output", got, output)
        names = ["dx", "dh0"][: len(args)] + [quantity_of(name) for name, _ in ours.named_parameters()]
        for name, got, grad in zip(names, grads, grads_want, strict=True):
            assert_near(name, got, grad)


@each_case
def test_forward_equals_the_materials_own_reference(info, dtype, training):
    """An input without a batch is a batch of one."""
    packed = 0
    for module_input in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=training
    ):
        module, args = made(info, module_input.constructor_input, dtype, training), module_input.forward_input.args
        close(tensors(module(*args)), tensors(module_input.reference_fn(module, *args)))
        packed += isinstance(args[0], PackedSequence)
    assert packed == 0  # the reference takes none; they are compared with torch.nn above


def check_derivatives(check, info, dtype, training, wanted):
    """`check` of module(*args) by the inputs and those parameters that wanted(names) names, a set at a time."""
    for module, args in modules(info, dtype, training):
        names = [name for name, _ in module.named_parameters()]

        def call(*values, module=module, args=args):
            return tuple(tensors(module(*replaced(args, values[: len(args)]))))

        for chosen in wanted(names) if training else [names]:  # one code for both modes, which nothing here draws from
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in chosen)
            # The parameters are passed too: gradcheck moves them in place, and the module reads them at every call.
            assert check(call, (*tensors(args), *module.parameters()), fast_mode=True)


def all_and_each(names):
    """All, none and, of a single layer in one direction, each by itself: further ones have no code of their own."""
    return [names, [], *([name] for name in names if len(names) <= 4)]


@each_float64_case
def test_gradients(info, dtype, training):
    """By everything, by only the inputs, and by the inputs and one parameter."""
    check_derivatives(torch.autograd.gradcheck, info, dtype, training, all_and_each)


@pytest.mark.parametrize("most", [8, pytest.param(16, marks=pytest.mark.exhaustive)])
@each_trained_float64_case
def test_second_gradients(info, dtype, training, most):
    """By everything and, where there are four parameters or time, by only the inputs. Each parameter on its own would
    take a minute and has no path of its own: that is seen above. Without dropout, eval mode has none either. The
    modules with 16 parameters, stacked and in both directions, take as long as all others.
    """

    def all_and_none(names):
        if len(names) > most:
            return []
        return [names, []] if len(names) <= 4 or most == 16 else [names]

    check_derivatives(torch.autograd.gradgradcheck, info, dtype, training, all_and_none)


@each_case
def test_non_contiguous_tensors(info, dtype, training):
    def spread(tensor):
        return torch.repeat_interleave(tensor.detach(), 2, -1)[..., ::2].requires_grad_(tensor.requires_grad)

    for module, args in modules(info, dtype, training):
        grad_outputs = [torch.randn_like(output) for output in tensors(module(*args))]
        strided = replaced(args, [spread(t) for t in tensors(args)])
        assert not any(t.is_contiguous() for t in tensors(strided))
        want = derivatives(module, args, grad_outputs)
        for these, grads in itertools.product((args, strided), (grad_outputs, [spread(g) for g in grad_outputs])):
            outputs, got = derivatives(module, these, grads)
            close(outputs, want[0])
            close(got, want[1])


@each_case
def test_memory_format(info, dtype, training):
    """No entry has an input of 4 or 5 dimensions: contiguous is the one format, and outputs and gradients have it."""
    for module, args in modules(info, dtype, training):
        assert all(t.dim() < 4 for t in tensors(args))
        grad_outputs = [torch.randn_like(output) for output in tensors(module(*args))]
        want = derivatives(module, args, grad_outputs)
        for memory_format in (torch.preserve_format, torch.contiguous_format):
            outputs, grads = derivatives(module.to(memory_format=memory_format), args, grad_outputs)
            close([*outputs, *grads], [*want[0], *want[1]])
            assert all(t.is_contiguous() for t in (*outputs, *grads))


@each_case
def test_factory_arguments(info, dtype, training):
    """`device` and `dtype` reach every parameter, and so does a device context; names and sizes stay the same."""
    for constructor, _ in inputs(info, dtype, training):
        kind = OURS[info.module_cls]
        module = kind(*constructor.args, **constructor.kwargs, device="cpu", dtype=dtype)
        assert all(p.device.type == "cpu" and p.dtype is dtype for p in module.parameters())
        with torch.device("meta"):
            on_meta = kind(*constructor.args, **constructor.kwargs)
        for (name, p), (name_meta, p_meta) in zip(module.named_parameters(), on_meta.named_parameters(), strict=True):
            assert name == name_meta and p_meta.is_meta and (p.shape, p.stride()) == (p_meta.shape, p_meta.stride())
        empty = on_meta.to_empty(device="cpu")
        assert all(p.device.type == "cpu" for p in empty.parameters())


@each_case
def test_representation(info, dtype, training):
    for constructor, _ in inputs(info, dtype, training):
        ours, theirs = (made(info, constructor, dtype, training, kind) for kind in (None, info.module_cls))
        assert repr(ours) == str(ours) == repr(theirs)


@each_case
def test_copies_give_the_same_output(info, dtype, training):
    """Pickled by torch.save, its state loaded with `weights_only=True`, and copied in depth."""
    for constructor, forward in inputs(info, dtype, training, requires_grad=False):
        module = made(info, constructor, dtype, training)
        file, state = io.BytesIO(), io.BytesIO()
        torch.save(module, file)
        torch.save(module.state_dict(), state)
        file.seek(0)
        state.seek(0)
        loaded = made(info, constructor, dtype, training)
        loaded.load_state_dict(torch.load(state))
        for twin in (torch.load(file, weights_only=False), loaded, copy.deepcopy(module)):
            assert twin.training is training
            for got, want in zip(tensors(twin(*forward.args)), tensors(module(*forward.args)), strict=True):
                assert torch.equal(got, want)


@each_case
@pytest.mark.parametrize("swap", [False, True], ids=["set data", "swap tensors"])
def test_conversion(info, dtype, training, swap):
    """`.half()`, `.to(dtype)` and `.float()` in both ways that torch has; the parameters stay the same objects."""
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for module, args in modules(info, dtype, training, requires_grad=False):
            identities = [id(p) for p in module.parameters()]
            before = [p.detach().clone() for p in module.parameters()]
            for other in (module.half(), module.bfloat16(), module.double(), module.float()):
                assert other is module and all(p.requires_grad for p in module.parameters())
            assert all(p.dtype is torch.float32 for p in module.parameters())
            module.to(dtype)
            assert [id(p) for p in module.parameters()] == identities
            torch.testing.assert_close(list(module.parameters()), before, rtol=2**-7, atol=1e-7)  # 2**-8: bfloat16
            assert all(output.dtype is dtype for output in tensors(module(*args)))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("info", ENTRIES, ids=lambda info: info.name)
def test_if_train_and_eval_modes_differ(info):
    """`training` is read by the layer, whose entry says so, and not by the cell."""
    for module, args in modules(info, torch.float32, True):
        del module.training
        if info.train_and_eval_differ:
            with pytest.raises(AttributeError, match="'training'"):
                module(*args)
        else:
            module(*args)


# Where the text is our own, by what torch's pattern begins with; every number in the pattern is in ours too.
OWN_TEXTS = {
    "RNN input dtype": (
        r"input dtype \(.*\) does not match weight dtype \(.*\)\. Convert it: input\.to\(.*\), or convert the model: "
        r"model\.to\(.*\)"
    ),
    "input has inconsistent input_size": "input has 11 features, expected input_size = 10",
    "hidden0 has inconsistent hidden_size": r"Expected hidden to have shape \(3, 20\), got \(3, 21\)",
    "Input batch size 3": r"Expected hidden to have shape \(3, 20\), got \(5, 20\)",
    "Expected hidden to be 1D or 2D": r"Expected hidden to have shape \(3, 20\), got \(3, 1, 1, 20\)",
}


@each_case
def test_errors(info, dtype, training):
    """The same types of error, and torch's text or our own that names as much."""
    for error_input in info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=training
    ):
        constructor, forward = (
            error_input.module_error_input.constructor_input,
            error_input.module_error_input.forward_input,
        )
        theirs = error_input.error_regex
        text = next((ours for start, ours in OWN_TEXTS.items() if theirs.startswith(start)), theirs)
        kind = OURS[info.module_cls]
        arguments = constructor.args
        if kind is GRUCell:
            arguments = arguments[:2]  # the third, "relu", is for RNNCell; torch.nn.GRUCell takes it for a true bias
        if error_input.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error_input.error_type, match=text):
                kind(*arguments, **constructor.kwargs)
        else:
            module = kind(*arguments, **constructor.kwargs)
            with pytest.raises(error_input.error_type, match=text):
                module(*forward.args, **forward.kwargs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_multiple_device_transfer(info, dtype, training, monkeypatch):
    """To the GPU and back, with the results of the CPU; gradients in eval mode too, which cuDNN does not give."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    devices = ["cuda:0", "cpu", "cuda:0", *(["cuda:1"] if torch.cuda.device_count() > 1 else [])]
    for module, args in modules(info, dtype, training):
        module.precision = "ieee"
        grad_outputs = [torch.randn_like(output) for output in tensors(module(*args))]
        want = [t.clone() for part in derivatives(module, args, grad_outputs) for t in part]
        for device in devices:
            moved = [arg.to(device) for arg in args]
            module.to(device)
            assert all(p.device == torch.device(device) for p in module.parameters())
            outputs, grads = derivatives(module, moved, [grad.to(device) for grad in grad_outputs])
            close([t.cpu() for t in (*outputs, *grads)], want)
