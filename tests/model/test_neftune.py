import pytest
import torch

from deepen.model.neftune import add_noise, noise_bound


def test_the_published_bound() -> None:
    assert noise_bound(5, 512, 4096) == pytest.approx(3.453e-3, rel=1e-3)


def test_noise_is_within_its_bound_and_absent_outside_training() -> None:
    embedding = torch.nn.Embedding(10, 16)
    tokens_BT = torch.randint(10, (3, 64))
    plain = embedding(tokens_BT)
    handle = add_noise(embedding, 5)
    noise = (embedding(tokens_BT) - plain).abs()
    assert 0.9 * noise_bound(5, 64, 16) < noise.max() <= noise_bound(5, 64, 16) * (1 + 1e-4)
    assert torch.equal(embedding.eval()(tokens_BT), plain)
    handle.remove()
    assert torch.equal(embedding.train()(tokens_BT), plain)
