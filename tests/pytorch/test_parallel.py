"""DataParallel, DistributedDataParallel and FSDP2: training is that of torch.nn.GRU on the whole batch.

Two processes on the CPU over gloo, which meet through a file: no port is taken. A warning is an error in them too.
"""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import import_module

import pytest
import torch
from oracle import assert_near, quantity
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from grucore import GRU

pytestmark = pytest.mark.slow

LENGTHS = torch.tensor([7, 2, 5, 1, 3, 7])
PROCESSES, STEPS, SECONDS = 2, 2, 180
f64 = torch.float64


class Classifier(nn.Module):
    """One number for each row of x (B, T, 3), from h_n and from y."""

    def __init__(self):
        super().__init__()
        self.gru = GRU(3, 5, 2, bidirectional=True, dtype=f64)
        self.head = nn.Linear(10, 1, dtype=f64)

    def run(self, x, lengths):
        return self.gru(x, lengths=lengths)

    def forward(self, x, lengths):
        y, h_n = self.run(x.transpose(0, 1), lengths)
        return self.head(torch.cat([h_n[-2], h_n[-1]], -1)).squeeze(-1) + y.square().sum((0, 2))


class Oracle(Classifier):
    """The same with torch.nn.GRU, on packed sequences."""

    def __init__(self, model):
        super().__init__()
        self.gru = model.gru.to_torch()
        self.head.load_state_dict(model.head.state_dict())

    def run(self, x, lengths):
        y, h_n = self.gru(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=len(x))[0], h_n


def model_and_batch():
    """The same in every process. One call has been made, of which nothing may remain."""
    torch.manual_seed(3)
    model, x = Classifier(), torch.randn(len(LENGTHS), 7, 3, dtype=f64)
    model(x, LENGTHS)
    return model, x


def train(model, x, lengths):
    """Every gradient of the first step, and every parameter after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x, lengths).square().mean().backward()
        gradients = gradients or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return gradients, {name: p.detach() for name, p in model.named_parameters()}


def assert_trained_as_one(got):
    model, x = model_and_batch()
    for results, wanted in zip(got, train(Oracle(model), x, LENGTHS), strict=True):
        assert list(results) == list(wanted)
        for name, want in wanted.items():
            assert_near(quantity(name), results[name], want)


def sharded(model):
    fully_shard(model.gru)
    return fully_shard(model)


def whole(tensors):
    """The parameters under the model's own names, gathered from all processes."""
    return {
        name.removeprefix("module."): t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()
    }


WRAPS = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": sharded}


def work(rank, folder):
    """The work of one process: training on its part of the batch."""
    warnings.simplefilter("error")
    half = timedelta(seconds=SECONDS / 2)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=half)
    for name, wrap in WRAPS.items():
        model, x = model_and_batch()
        part = slice(rank * len(x) // PROCESSES, (rank + 1) * len(x) // PROCESSES)
        results = [whole(tensors) for tensors in train(wrap(model), x[part], LENGTHS[part])]
        torch.save(results, folder / f"{name}-{rank}.pt")
    if HAS_DTENSORS:
        results = [[t.full_tensor().detach() for t in outputs_of_dtensors(**each)] for each in OPTIONS]
        torch.save(results, folder / f"DTensor-{rank}.pt")
    distributed.barrier()  # one that ends while the other still talks to it may abort
    distributed.destroy_process_group()


HAS_DTENSORS = torch.__version__ >= torch.torch_version.TorchVersion("2.13")  # those of 2.8 lack operators
OPTIONS = ({}, {"zoneout": 0.2, "layer_norm": True})


def layer_and_input(**options):
    torch.manual_seed(4)
    return GRU(3, 4, 2, dtype=f64, **options).eval(), torch.randn(5, 2 * PROCESSES, 3, dtype=f64)


def outputs_of_dtensors(**options):
    """y and a gradient of a layer whose weights every process has, and whose rows are divided among them."""
    layer, x = layer_and_input(**options)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    distribute_module(layer, mesh)
    y, _ = layer(distribute_tensor(x, mesh, [Shard(1)]))
    y.square().sum().backward()
    return y, layer.weight_hh_l0.grad


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder where each process left its results."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.spawn(work, (folder,), PROCESSES, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"no end after {SECONDS} seconds"
    finally:
        for process in context.processes:
            process.kill()
    return folder


@pytest.mark.skipif(not HAS_DTENSORS, reason="the DTensors of older versions lack operators")
@pytest.mark.parametrize("rank", range(PROCESSES))
def test_layers_of_dtensors(rank, trained):
    for options, (y, d_w_hh) in zip(OPTIONS, torch.load(trained / f"DTensor-{rank}.pt"), strict=True):
        layer, x = layer_and_input(**options)
        want, _ = layer(x)
        want.square().sum().backward()
        torch.testing.assert_close((y, d_w_hh), (want.detach(), layer.weight_hh_l0.grad))


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("name", WRAPS)
def test_two_processes(name, rank, trained):
    assert_trained_as_one(torch.load(trained / f"{name}-{rank}.pt"))


class InThreads(nn.Module):
    """DataParallel as on several GPUs, with copies on the CPU instead."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        replicas = nn.parallel.replicate(self.module, range(2))
        with ThreadPoolExecutor() as pool:
            outputs = pool.map(lambda replica, *part: replica(*part), replicas, *(x.chunk(2) for x in inputs))
            return torch.cat(list(outputs))


def test_replicas_in_threads(monkeypatch):
    monkeypatch.setattr(
        import_module("torch.nn.parallel.replicate"),
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices],
    )
    model, x = model_and_batch()
    assert_trained_as_one([whole(tensors) for tensors in train(InThreads(model), x, LENGTHS)])


def test_data_parallel():
    """Over all GPUs; without one it calls the model itself."""
    model, x = model_and_batch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = train(nn.DataParallel(model.to(device)), x.to(device), LENGTHS.to(device))
    assert_trained_as_one([{name: t.cpu() for name, t in whole(tensors).items()} for tensors in results])
