"""The neck has no shift and its classifier no bias."""

import torch

from visionattn.layers.bnneck import BNNeck


def test_bias_of_the_norm_is_not_trained() -> None:
    neck = BNNeck(6, 4)
    trained = {name for name, parameter in neck.named_parameters() if parameter.requires_grad}
    assert trained == {"norm.weight", "classifier.weight"}
    assert not neck.norm.bias.any()


def test_logits_do_not_depend_on_scale_and_shift_of_the_features() -> None:
    neck, features = BNNeck(6, 4), torch.randn(16, 6)
    expected = ((features - features.mean(0)) / features.std(0, correction=0)) @ neck.classifier.weight.T
    torch.testing.assert_close(neck(features), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(neck(100 * features + 7), expected, rtol=1e-3, atol=1e-4)
