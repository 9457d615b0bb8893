"""GLCA and PWCA against plain forms of the paper's equations, in double precision."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from visionattn.layers.dual_cross_attention import (
    DualCrossBlock,
    GlobalLocalCrossAttention,
    attend_pairs,
    rollout_class_token,
    select_patches,
)
from visionattn.layers.paired_windows import forward_paired_windows

EXACT = {"atol": 1e-10, "rtol": 1e-10}
PAIR = torch.tensor([2, 0, 1])


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def new_block(**options: bool) -> DualCrossBlock:
    block = DualCrossBlock(dim=12, num_heads=3, qkv_bias=True, **options).double()
    for parameter in block.parameters():  # biases and norms, too
        nn.init.normal_(parameter, std=0.5)
    return block


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


@pytest.mark.parametrize("depth", [1, 2, 11])
def test_rollout_is_the_first_row_of_the_product_of_matrices(depth: int) -> None:
    scores = [double(2, 17, 17).softmax(-1) for _ in range(depth)]
    product = torch.eye(17, dtype=torch.float64)
    for own in scores:
        product = (0.5 * own + 0.5 * torch.eye(17)) @ product
    torch.testing.assert_close(rollout_class_token(scores), product[:, 0], **EXACT)


def test_select_patches_takes_the_largest_rollout() -> None:
    scores = [double(3, 22, 22).softmax(-1) for _ in range(2)]
    rollout, chosen = select_patches(scores, 0.3, num_prefix_tokens=2)
    torch.testing.assert_close(rollout, rollout_class_token(scores)[:, 2:], **EXACT)
    for row, places in zip(rollout, chosen, strict=True):
        assert sorted(row[places].tolist()) == sorted(row.tolist())[-6:]


@pytest.mark.parametrize(
    ("ratio", "patches", "count"), [(0.1, 784, 78), (0.3, 128, 38), (0.29, 100, 29), (0.01, 4, 1), (1.0, 5, 5)]
)
def test_number_of_selected_patches_is_the_ratio(ratio: float, patches: int, count: int) -> None:
    _, chosen = select_patches([torch.rand(1, patches + 1, patches + 1)], ratio, 1)
    assert chosen.shape == (1, count)
    assert len(set(chosen[0].tolist())) == count


@pytest.mark.parametrize("source", ["sa", "pwca"])
def test_pairs_share_one_softmax(source: str) -> None:
    q, k, v = double(3, 6, 2, 5, 4)
    out = attend_pairs(q, k, v, PAIR, source)
    torch.testing.assert_close(out[:3], softmax_attention(q[:3], k[:3], v[:3]), **EXACT)
    for index in range(3):
        other = PAIR[index] + (3 if source == "pwca" else 0)
        keys, values = (torch.cat([x[3 + index], x[other]], dim=1) for x in (k, v))
        torch.testing.assert_close(out[3 + index], softmax_attention(q[3 + index], keys, values), **EXACT)


def test_pairs_whose_keys_are_masked_leave_self_attention() -> None:
    q, k, v = double(3, 6, 2, 5, 4)
    q[3:], k[3:], v[3:] = q[:3], k[:3], v[:3]
    masked = torch.zeros(1, 2, 5, 10, dtype=torch.float64)
    masked[..., 5:] = -torch.inf
    original = torch.cat

    def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
        return masked if dim == 3 else original(tensors, dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", cat)
        out = attend_pairs(q, k, v, PAIR, bias=torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(out[3:], out[:3], **EXACT)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_block_without_pairs_equals_timm(qk_norm: bool) -> None:
    block = new_block(qk_norm=qk_norm)
    plain = Block(dim=12, num_heads=3, qkv_bias=True, qk_norm=qk_norm).double()
    plain.load_state_dict(block.state_dict())
    x = double(2, 7, 12)
    torch.testing.assert_close(block(x), plain(x), **EXACT)
    torch.testing.assert_close(block.forward_parts(x, None, "sa", False)[0], plain(x), **EXACT)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_scores_equal_attention_weights(grad: bool) -> None:
    block, x = new_block(), double(2, 7, 12)
    with torch.set_grad_enabled(grad):
        out, scores = block.forward_parts(x, None, "sa", True)
        torch.testing.assert_close(out, block(x), **EXACT)
    qkv = block.attn.qkv(block.norm1(x)).view(2, 7, 3, 3, 4)
    q, k = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
    torch.testing.assert_close(scores, (q @ k.mT / 2).softmax(-1).mean(1), **EXACT)
    assert not scores.requires_grad


def test_scores_with_pairs_equal_self_attention_weights() -> None:
    block, x = new_block(), double(6, 7, 12)
    _, scores = block.forward_parts(x, PAIR, "sa", True)
    torch.testing.assert_close(scores, block.forward_parts(x[:3], None, "sa", True)[1], **EXACT)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_selected_tokens_equal_the_result_for_all_tokens(qk_norm: bool) -> None:
    block, x = new_block(qk_norm=qk_norm), double(2, 7, 12)
    chosen = [0, 4, 2]
    torch.testing.assert_close(block.forward_selected(x[:, chosen], x), block(x)[:, chosen], **EXACT)


def test_glca_returns_the_class_token_and_selected_patches() -> None:
    block, norm, x = new_block(), nn.LayerNorm(12).double(), double(2, 12, 12)
    scores = [double(2, 12, 12).softmax(-1) for _ in range(3)]
    _, chosen = select_patches(scores, 0.3, num_prefix_tokens=2)
    answers = norm(block(x))
    expected = torch.stack([answers[index, [0, *(places + 2).tolist()]].mean(0) for index, places in enumerate(chosen)])
    glca = GlobalLocalCrossAttention(block, norm, 0.3, "avg")
    torch.testing.assert_close(glca(x, scores, 2), expected, **EXACT)
    # The class token alone: the outputs of other tokens, and so the selection, do not matter.
    glca = GlobalLocalCrossAttention(block, norm, 0.3, "token")
    torch.testing.assert_close(glca(x, [], 2), answers[:, 0], **EXACT)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("source", ["sa", "pwca"])
def test_window_attends_to_the_same_window_of_another_image(source: str, shift: int) -> None:
    block = SwinTransformerBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=shift).double().eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    attn, x = block.attn, double(6, 8, 8, 8)
    out = forward_paired_windows(block, x, PAIR, source)  # type: ignore[arg-type]
    assert block.attn is attn
    torch.testing.assert_close(out[:3], block(x[:3]), **EXACT)

    def windows(maps: Tensor) -> Tensor:
        shifted = block.norm1(maps).roll((-shift, -shift), (1, 2))
        return shifted.view(-1, 2, 4, 2, 4, 8).transpose(2, 3).reshape(len(maps), 4, 16, 8)

    def project(tokens: Tensor) -> tuple[Tensor, ...]:
        return attn.qkv(tokens).view(4, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)

    bias = attn._get_rel_pos_bias() + (0 if block.attn_mask is None else block.attn_mask[:, None])
    for index in range(3):
        other = PAIR[index] + (3 if source == "pwca" else 0)
        (q, k, v), (_, k2, v2) = project(windows(x[3 + index][None])[0]), project(windows(x[other][None])[0])
        logits = torch.cat([q @ k.mT / 2 + bias, q @ k2.mT / 2 + bias], dim=-1)
        attended = logits.softmax(-1) @ torch.cat([v, v2], dim=2)
        tokens = attn.proj(attended.transpose(1, 2).reshape(4, 16, 8)).view(2, 2, 4, 4, 8)
        maps = tokens.transpose(1, 2).reshape(8, 8, 8).roll((shift, shift), (0, 1))
        expected = x[3 + index] + maps
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(out[3 + index], expected, **EXACT)


@pytest.mark.parametrize(
    ("ratio", "pool", "message"),
    [(0.0, "avg", r"glca_ratio must lie in \(0, 1\], got 0"), (1.5, "avg", "got 1.5"), (0.1, "max", "got 'max'")],
)
def test_bad_options_are_named(ratio: float, pool: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalLocalCrossAttention(new_block(), nn.Identity(), ratio, pool)  # type: ignore[arg-type]
