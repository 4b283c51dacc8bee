"""Works with Captum in eval mode, gradient penalties, Lightning, the Hugging Face hub, and quantisation.

The oracle is the same with torch.nn.GRU in float64. Heavy packages are imported by the tests that need them.
"""

import copy

import pytest
import torch
from oracle import FUSED_LIMITS, LIMITS, assert_near, rms_error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from grucore import GRU

pytestmark = pytest.mark.slow

f64 = torch.float64


class Classifier(nn.Module):
    """Two scores from the state after each row's last step; x is (B, T, 3)."""

    def __init__(self, **options):
        super().__init__()
        self.gru = GRU(3, 4, 2, batch_first=True, bidirectional=True, dropout=0.5, **options)
        self.head = nn.Linear(8, 2)

    def last(self, x, lengths):
        return self.gru(x, lengths=lengths)[1]

    def forward(self, x, lengths):
        return self.head(self.last(x, lengths)[-2:].transpose(0, 1).flatten(1))


class Oracle(Classifier):
    """The same parameters in torch.nn.GRU, in float64."""

    def __init__(self, model):
        super().__init__()
        self.gru, self.head = model.gru.to_torch(), copy.deepcopy(model.head)
        self.double().train(model.training)

    def last(self, x, lengths):
        return self.gru(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]


def batch(dtype):
    return torch.randn(3, 5, 3, dtype=dtype, requires_grad=True), torch.tensor([5, 2, 4])


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_gradients_in_eval_mode(backend):
    """The gradients of every parameter and of the input."""
    model = Classifier(backend=backend, precision="ieee").eval()
    x, lengths = batch(torch.float32)
    results = []
    for each, dtype in ((model, torch.float32), (Oracle(model), f64)):
        x_ = x.detach().to(dtype).requires_grad_()
        results.append(torch.autograd.grad(each(x_, lengths)[:, 0].sum(), [x_, *each.gru.parameters()]))
    for got, want in zip(*results, strict=True):
        assert_near("dx", got, want, FUSED_LIMITS if backend == "triton" else LIMITS)


def saliency(model, x, lengths):
    from captum.attr import Saliency

    return Saliency(model).attribute(x, target=1, additional_forward_args=(lengths,))


def integrated_gradients(model, x, lengths):
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    given, difference = method.attribute(
        x, target=1, additional_forward_args=(lengths,), n_steps=32, return_convergence_delta=True
    )
    assert difference.abs().max() < 1e-3, "attributions sum to the difference from the baseline"
    return given


@pytest.mark.parametrize("method", [saliency, integrated_gradients], ids=lambda method: method.__name__)
def test_attributions_in_eval_mode(method):
    model = Classifier().double().eval()
    x, lengths = batch(f64)
    got = method(model, x, lengths)
    assert_near("dx", got, method(Oracle(model), x, lengths))
    assert got[1, 2:].count_nonzero() == 0 and got[1, :2].count_nonzero() == 6


class Critic(nn.Module):
    """The critic of a Wasserstein GAN: a number for each sequence (T, B, 3)."""

    def __init__(self):
        super().__init__()
        self.gru = GRU(3, 4, 2, bidirectional=True, dtype=f64)
        self.head = nn.Linear(8, 1, dtype=f64)

    def forward(self, x):
        return self.head(self.gru(x)[0]).mean(0)


def test_a_critic_with_gradient_penalty():
    """Two steps of WGAN-GP (Gulrajani et al. 2017), whose loss contains the gradient's norm, update weights equally."""
    critic = Critic()
    oracle = copy.deepcopy(critic)
    oracle.gru = critic.gru.to_torch()
    real, fake, share = (torch.randn(5, 2, 3, dtype=f64), torch.randn(5, 2, 3, dtype=f64), torch.rand(1, 2, 1).double())
    before = copy.deepcopy(critic)
    for model in (critic, oracle):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(2):
            mixed = (share * real + (1 - share) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(model(mixed).sum(), mixed, create_graph=True)
            penalty = (gradient.norm(dim=(0, 2)) - 1).square().mean()
            optimizer.zero_grad()
            (model(fake).mean() - model(real).mean() + 10 * penalty).backward()
            optimizer.step()
    for got, want, start in zip(*(m.parameters() for m in (critic, oracle, before)), strict=True):
        assert_near("dw", got, want)
        assert not torch.equal(got, start) or start.shape == (1,), "the head's bias alone gets no gradient"


def data():
    x, lengths = batch(torch.float32)
    return list(zip(x.detach(), lengths, torch.tensor([0, 1, 1]), strict=True))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
def test_lightning_trains(tmp_path):
    """Two steps of a LightningModule; the oracle performs them by hand."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch, index):
            x, lengths, target = batch
            return nn.functional.cross_entropy(self.model(x, lengths), target)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    module, loader = Module(), torch.utils.data.DataLoader(data(), batch_size=3)
    module.model.gru.dropout = 0.0  # nothing is drawn: Lightning may draw before
    oracle = Oracle(module.model)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.5)
    for x, lengths, target in [*loader, *loader]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(oracle(x.double(), lengths), target).backward()
        optimizer.step()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **quiet).fit(module, loader)
    assert module.global_step == 2
    for got, want in zip(module.model.parameters(), oracle.parameters(), strict=True):
        assert_near("dw", got, want)


def test_the_hub_mixin_saves_and_loads(tmp_path):
    """To a folder and back: safetensors and a config.json with the arguments."""
    from huggingface_hub import PyTorchModelHubMixin

    class HubGRU(GRU, PyTorchModelHubMixin):
        pass

    model = HubGRU(3, 4, 2, bidirectional=True, zoneout=0.1, learn_initial_state=True).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded, x = HubGRU.from_pretrained(tmp_path), torch.randn(5, 2, 3)
    assert repr(loaded) == repr(model)
    for got, want in zip(loaded(x), model(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_quantisation_by_way_of_to_torch():
    """To 8 bits: equal to the quantised torch.nn.GRU with the same state_dict, and close to the layer."""
    layer, theirs, x = GRU(16, 32, 2), nn.GRU(16, 32, 2), torch.randn(20, 4, 16)
    theirs.load_state_dict(layer.state_dict())
    ours, theirs = (
        torch.ao.quantization.quantize_dynamic(nn.Sequential(each).eval(), {nn.GRU})
        for each in (layer.to_torch(), theirs)
    )
    assert "DynamicQuantizedGRU(16, 32, num_layers=2)" in repr(ours)
    for got, same, want in zip(ours(x), theirs(x), layer.double()(x.double()), strict=True):
        assert torch.equal(got, same)
        assert 0 < rms_error(got, want) < 0.03  # 0.014 measured
