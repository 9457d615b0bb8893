"""Path patching of two cues in a network whose heads carry them by construction."""

from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import Tensor, nn

from visionattn.analysis.cues import CueStudy, cut_sides, measure_cues
from visionattn.analysis.heads import HeadLayer, head_layers
from visionattn.data.conflicts import ConflictBatch

WEIGHTS = {"digit": 3.0, "photo": 1.0}
"""Logit that each cue adds to its class."""
WIDTH = 36  # ten channels for classes, two for the kind of the token, of three heads of width 12


class Block(nn.Module):
    """A block of attention alone, with a residual branch around it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(WIDTH, num_heads=3, qkv_bias=True, proj_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class Dominoes(nn.Module):
    """Two blocks on a class token, a token of the digit, and one of the photo.

    In the first block head 1 reads the photo and does nothing with it. In the second block head 0 adds the digit's
    class to the class token, and head 2 that of the photo. All other heads add nothing.
    """

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Identity()
        self.blocks = nn.ModuleList([Block(), Block()])
        for block in self.blocks:
            for parameter in block.parameters():
                nn.init.zeros_(parameter)
        self._attend(0, 1, token=1, weight=0.0)
        self._attend(1, 0, token=0, weight=WEIGHTS["digit"])
        self._attend(1, 2, token=1, weight=WEIGHTS["photo"])

    @torch.no_grad()
    def _attend(self, block: int, head: int, token: int, weight: float) -> None:
        """Let all tokens attend to one, whose class a head adds with this weight."""
        attn: Any = self.blocks[block].attn
        first = 12 * head
        attn.qkv.bias[first] = 1
        attn.qkv.weight[WIDTH + first, 10 + token] = 200
        attn.qkv.weight[2 * WIDTH + first : 2 * WIDTH + first + 10, :10] = torch.eye(10)
        attn.proj.weight[:10, first : first + 10] = weight * torch.eye(10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images `[B, 2, 10]`, one-hot classes of digit and photo."""
        kinds = torch.eye(2, WIDTH - 10).expand(len(images), -1, -1)
        x = torch.cat([torch.zeros(len(images), 1, WIDTH), torch.cat([images, kinds], -1)], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0, :10]


def encode(digit: Tensor, photo: Tensor) -> Tensor:
    return torch.stack([torch.eye(10)[digit], torch.eye(10)[photo]], 1)


@pytest.fixture
def pairs() -> list[ConflictBatch]:
    """Return all conflicts of ten digits and ten photos, each with the two classes that follow the photo's."""
    digit, photo = torch.tensor([(a, b) for a in range(10) for b in range(10) if a != b]).unbind(1)
    third = torch.tensor(
        [next(c % 10 for c in range(b + 1, 20) if c % 10 != a) for a, b in zip(digit, photo, strict=True)]
    )
    whole = ConflictBatch(encode(digit, photo), encode(third, photo), encode(digit, third), digit, photo)
    return [ConflictBatch(*parts) for parts in zip(*(each.split(40) for each in whole), strict=True)]


@pytest.fixture
def network() -> nn.Module:
    return Dominoes().eval()


def studied(network: nn.Module, pairs: list[ConflictBatch]) -> tuple[list[HeadLayer], CueStudy]:
    layers = head_layers(network)
    return layers, measure_cues(network, layers, [head for layer in layers for head in layer.heads], pairs)


def test_heads_have_the_effects_that_they_were_given(network: nn.Module, pairs: list[ConflictBatch]) -> None:
    _, study = studied(network, pairs)
    assert list(study.heads) == [(layer, head) for layer in range(2) for head in range(3)]
    for head, found in study.heads.items():
        # Logit 3 of the digit goes to a third class; logit 1 of the photo is no longer subtracted.
        wanted = {(1, 0): (-3.0, 0.0), (1, 2): (0.0, 1.0)}.get(head, (0.0, 0.0))
        assert (found["digit"], found["photo"]) == pytest.approx(wanted, abs=1e-5)
        assert (found["digit_se"], found["photo_se"]) == pytest.approx((0, 0), abs=1e-5)
    assert study.other_digit.mean == pytest.approx(-3, abs=1e-5)
    assert study.other_photo.mean == pytest.approx(1, abs=1e-5)
    wins = study.wins
    assert (wins.num_images, wins.digit_wins, wins.margin.mean) == (90, 1, pytest.approx(2, abs=1e-5))
    assert (wins.top1_digit, wins.top1_photo, wins.top1_other) == (1, 0, 0)


def test_effects_are_means_over_images_with_their_error(pairs: list[ConflictBatch]) -> None:
    """Patch by hand: run the whole network on both images, with the output of one head of one put into the other."""
    torch.manual_seed(1)
    network = Dominoes().eval().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    pairs = [ConflictBatch(*(part.double() if part.is_floating_point() else part for part in pair)) for pair in pairs]
    torch.set_default_dtype(torch.float64)
    try:
        layers, study = studied(network, pairs)
        for layer, head in [(0, 1), (1, 2)]:
            proj: Any = layers[layer].proj
            changes = []
            for pair in pairs:
                kept: list[Tensor] = []
                hook = proj.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
                before = network(pair.image)
                network(pair.other_photo)
                hook.remove()
                patched = kept[0].clone()
                patched[..., 12 * head : 12 * head + 12] = kept[1][..., 12 * head : 12 * head + 12]
                hook = proj.register_forward_pre_hook(lambda *_, patched=patched: (patched,))
                after = network(pair.image)
                hook.remove()
                change = after - before
                rows = torch.arange(len(change))
                changes.append(change[rows, pair.digit] - change[rows, pair.photo])
            values = torch.cat(changes).detach()
            found = study.heads[layer, head]
            assert found["photo"] == pytest.approx(values.mean().item(), abs=1e-10)
            assert found["photo_se"] == pytest.approx(values.std(correction=1).item() / 90**0.5, abs=1e-10)
            assert abs(values.mean()) > 1e-4
    finally:
        torch.set_default_dtype(torch.float32)


def test_cutting_one_side_lets_the_other_win(network: nn.Module, pairs: list[ConflictBatch]) -> None:
    layers, study = studied(network, pairs)
    cuts = {
        (cut.side, len(cut.heads), cut.order): cut for cut in cut_sides(network, layers, study.heads, pairs, (1, 7))
    }
    assert len(cuts) == 7  # seven heads are more than there are
    digit, photo = cuts["digit", 1, 0], cuts["photo", 1, 0]
    assert (digit.heads, photo.heads) == ([(1, 0)], [(1, 2)])
    # All classes are equally frequent: the mean of a head's outputs favours none.
    assert (digit.wins.digit_wins, digit.wins.top1_photo) == (0, 1)
    assert digit.wins.margin.mean == pytest.approx(-1, abs=1e-5)
    assert (photo.wins.digit_wins, photo.wins.top1_digit) == (1, 1)
    assert photo.wins.margin.mean == pytest.approx(3, abs=1e-5)
    for order in range(5):
        cut = cuts["random", 1, order]
        wanted = {(1, 0): -1.0, (1, 2): 3.0}.get(cut.heads[0], 2.0)
        assert cut.wins.margin.mean == pytest.approx(wanted, abs=1e-5)
    assert len({cuts["random", 1, order].heads[0] for order in range(5)}) > 1


def test_random_orders_follow_the_seed_and_grow(network: nn.Module, pairs: list[ConflictBatch]) -> None:
    layers, study = studied(network, pairs[:1])

    def drawn(seed: int) -> list[Any]:
        cuts = cut_sides(network, layers, study.heads, pairs[:1], (2, 4), orders=3, seed=seed)
        return [cut.heads for cut in cuts if cut.side == "random"]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(large[:2] == small for small, large in zip(drawn(0)[::2], drawn(0)[1::2], strict=True))


def test_results_are_plain_values(network: nn.Module, pairs: list[ConflictBatch]) -> None:
    layers, study = studied(network, pairs)
    values = study.to_dict()
    assert values["wins"]["margin"]["mean"] == pytest.approx(2, abs=1e-5)
    assert values["heads"][3] == {"head": "1.0", **study.heads[1, 0]}
    (cut, *_) = cut_sides(network, layers, study.heads, pairs, (1,))
    assert cut.to_dict()["heads"] == ["1.0"]
    assert cut.to_dict()["wins"]["digit_wins"] == 0
