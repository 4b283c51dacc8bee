"""The recurrent policy: an update sees the states of acting, equals torch.nn.GRU on split episodes, and learns."""

import one_file
import pytest
import torch

pytestmark = pytest.mark.slow

example = one_file.load("policy")
T, B, H = example.STEPS, example.ROWS, example.HIDDEN


@pytest.fixture
def experience():
    """A policy, its state in the middle of corridors, and the experience from there."""
    policy, corridors = example.Policy(), example.Corridors()
    _, h0 = example.gather(policy, corridors, torch.zeros(1, B, H))
    seen, _ = example.gather(policy, corridors, h0)
    assert not seen[1][0].all() and seen[1].any(0).all()  # rows begin in the middle, and a corridor begins in each
    return policy, h0, seen


def test_an_update_reads_what_acting_saw(experience):
    policy, h0, (x, first, turn, log_prob, value, _, _) = experience
    y, _ = policy.gru(x, h0, reset=first, reset_state=torch.zeros_like(h0))
    choice, again = policy.heads(y)
    torch.testing.assert_close(choice.log_prob(turn), log_prob, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, value, rtol=0, atol=1e-6)


def test_equals_nn_gru_on_split_episodes(experience):
    policy, h0, (x, first, *_) = experience
    gru, theirs = policy.gru, policy.gru.to_torch()
    y = gru(x, h0, reset=first, reset_state=torch.zeros_like(h0))[0]
    want = example.with_nn_gru(theirs, x, h0, first)
    torch.testing.assert_close(y, want, rtol=0, atol=1e-6)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, gru.weight_hh_l0, dy)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(want, theirs.weight_hh_l0, dy)[0], rtol=1e-4, atol=1e-4)


def test_corridors():
    corridors, steps, cue = example.Corridors(), torch.zeros(B), torch.zeros(B, dtype=torch.bool)
    for _ in range(100):
        x, first = corridors.look()
        assert torch.equal(x[:, 0] != 0, first)
        cue = torch.where(first, x[:, 0] > 0, cue)
        steps = torch.where(first, 0, steps + 1)
        turn = torch.randint(2, (B,))
        reward, over = corridors.act(turn)
        assert torch.equal(x[:, 1] > 0, over) and torch.equal(reward > 0, over & (turn == cue))
        assert (steps[over] >= 10).all() and (steps <= 30).all()


def test_advantages():
    torch.manual_seed(1)
    value, reward, over = torch.randn(T, B), torch.randn(T, B), torch.rand(T, B) < 0.1
    got = example.advantages(value, reward, over, discount=0.9, decay=0.8)
    following = torch.cat([value[1:], value[-1:]])
    for b in (0, B - 1):
        for t in (0, T // 2, T - 1):
            want, weight = 0.0, 1.0
            for k in range(t, T):
                want += weight * (reward[k, b] + 0.9 * following[k, b] * (not over[k, b]) - value[k, b])
                weight *= 0.9 * 0.8
                if over[k, b]:
                    break
            assert got[t, b].item() == pytest.approx(float(want), abs=1e-5)


def test_learns_to_remember():
    torch.manual_seed(0)
    right = list(example.train(example.Policy(), 40))
    assert 0.4 < sum(right[:5]) / 5 < 0.6
    assert sum(right[-5:]) / 5 > 0.9


def test_as_a_program():
    result = one_file.run("policy", "--steps", 1)
    assert result.returncode == 0, result.stderr
    assert "of the turns correct" in result.stdout and "torch.nn.GRU" in result.stdout
    assert one_file.run("policy", "--steps", -3).stderr.endswith("--steps must be at least 1, got -3\n")
