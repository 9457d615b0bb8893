"""Contract of every head: independent images, tokens in any order, low precision, errors for what does not fit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.probing.small_heads import HEADS, OPTIONS, make_tokens, small
from visionattn.probing.heads import create_head, select_tokens


@pytest.mark.parametrize("name", sorted({*HEADS} - {"cbam", "clip"}))
def test_order_of_tokens_does_not_matter(name):
    head, tokens = small(name).eval(), make_tokens(2, 9, 64)
    torch.testing.assert_close(head(tokens), head(tokens[:, torch.randperm(9)]))


@pytest.mark.parametrize("name", HEADS)
def test_one_image_of_one_token(name):
    options = {"num_tokens": 1} if name == "clip" else {}
    head = small(name, **options).eval()
    tokens = make_tokens(1, 1, 64)
    logits, features = head(tokens), head(tokens, pre_logits=True)
    assert logits.shape == (1, 5)
    assert features.shape == (1, head.num_features)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, head.classifier(features))


@pytest.mark.parametrize("name", HEADS)
def test_images_do_not_see_each_other_at_evaluation(name):
    head, tokens = small(name), make_tokens(4, 9, 64)
    head(tokens)  # moves what batch norms have seen away from where they start
    head.eval()
    torch.testing.assert_close(head(tokens)[2:3], head(tokens[2:3]))


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_autocast(name):
    head, tokens = small(name).float(), make_tokens(8, 9, 64).float().detach()
    expected = head(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(tokens)
    F.cross_entropy(logits.float(), torch.arange(8) % 5).backward()
    error = (logits.float() - expected).norm() / expected.norm()
    assert error < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_a_few_steps_learn_a_small_problem(name):
    torch.manual_seed(1)
    head = create_head(name, 64, 4, **OPTIONS.get(name, {}))
    tokens, labels = torch.randn(32, 9, 64), torch.arange(32) % 4
    tokens[torch.arange(32), torch.arange(32) % 9] += 4 * torch.randn(4, 64)[labels]
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(tokens), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(4)


def test_batch_norm_has_no_parameters():
    norm = create_head("ep_8", 64, 5).norm
    assert list(norm.parameters()) == []
    assert norm.eps == 1e-6
    assert isinstance(create_head("capi", 64, 5).norm, nn.Identity)


def test_select_tokens():
    tokens = torch.arange(7).view(1, 7, 1)  # class token, 4 registers, 2 patches
    chosen = {kind: select_tokens(tokens, kind, 5, 4).flatten().tolist() for kind in ("patches", "cls", "all")}
    assert chosen == {"patches": [5, 6], "cls": [0], "all": [0, 5, 6]}
    assert select_tokens(tokens, "cls_or_patches", 5, 4).flatten().tolist() == [0]
    # Registers without a class token.
    assert select_tokens(tokens, "cls_or_patches", 4, 4).flatten().tolist() == [4, 5, 6]
    assert select_tokens(tokens, "cls_or_patches", 0).flatten().tolist() == list(range(7))
    for kind in ("cls", "all"):
        with pytest.raises(ValueError, match=f"tokens '{kind}' want a class token; the backbone has 4 prefix"):
            select_tokens(tokens, kind, 4, 4)


def test_class_token_beside_patches_is_one_token_more():
    head = create_head("ep_8", 64, 5, tokens="all")
    assert head.tokens == "all"
    assert create_head("ep_8", 64, 5).tokens == "patches"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("siglib", 64, 5), {}, "no head is named 'siglib'; did you mean siglip"),
        (("ep-32", 64, 5), {}, "no head is named 'ep-32'; did you mean ep_32"),
        (("ep_24", 64, 5), {}, r"queries must divide dim / d_out; .* 24 and dim / d_out 64; .* do: 16 or 32"),
        (("ep_0", 64, 5), {}, "number of queries 0"),
        (("ep_32", 64, 5), {"d_out": 3}, "d_out must divide dim; got d_out 3 and dim 64; the nearest that do: 2 or 4"),
        (("ep_32", 64, 5), {"d_out": 4}, "number of queries 32 and dim / d_out 16"),
        (("aim", 60, 5), {}, "num_heads must divide dim; got num_heads 16 and dim 60; the nearest that do: 12 or 15"),
        (("capi", 96, 5), {}, "head_dim must divide dim; got head_dim 64 and dim 96"),
        (("clip", 64, 5), {"num_head": 2}, "options num_heads, num_tokens; got 'num_head'; did you mean num_heads"),
        (("gap", 64, 5), {"num_heads": 2}, "head gap takes no options; got 'num_heads'"),
        (("ep_8", 64, 5), {"num_queries": 4}, "head ep_8 takes the options d_out; got 'num_queries'"),
        (("cbam", 64, 5), {"tokens": "all"}, "head cbam takes tokens 'patches'; got 'all'"),
        (("gap", 0, 5), {}, "dim must be at least 1; got 0"),
        (("gap", 64, 0), {}, "num_classes must be at least 1; got 0"),
    ],
)
def test_impossible_heads_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        create_head(*arguments, **options)


@pytest.mark.parametrize("name", ["aim", "cae", "cait", "clip", "dinovit", "jepa", "siglip"])
def test_heads_must_divide_the_width(name):
    with pytest.raises(ValueError, match="num_heads must divide dim; got num_heads 7 and dim 64"):
        create_head(name, 64, 5, num_heads=7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cbam", (2, 15, 64), "square grid; got 15 tokens"),
        ("clip", (2, 16, 64), "positions for 9 tokens; got 16; create it with num_tokens=16"),
        ("gap", (2, 9, 32), r"tokens must be \[B, N, 64\] with N at least 1; got \[2, 9, 32\]"),
        ("gap", (2, 64), r"got \[2, 64\]"),
        ("ep_8", (2, 0, 64), r"got \[2, 0, 64\]"),
        ("ep_8", (1, 9, 64), "at least 2 images in training; got 1"),
    ],
)
def test_impossible_tokens_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        small(name)(make_tokens(*shape))


@pytest.mark.parametrize("name", ["cls", "dinovit", "gap", "gem", "linear"])
def test_heads_without_attention_say_so(name):
    head = small(name)
    assert not head.has_attention
    with pytest.raises(ValueError, match="has no attention to show"):
        head.attention(make_tokens(2, 9, 64))
