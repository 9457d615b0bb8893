"""Heads have the parameters, outputs and gradients of their papers, also if they pool before they project."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.bench import probing_heads as bench
from kernels.bench import report
from tests.probing.small_heads import HEADS, make_tokens, small
from visionattn.probing.heads import create_head, list_heads

D, CLASSIFIER = 768, 769_000

PARAMETERS = {
    ("ep_1", 768): 1_359_592,
    ("ep_8", 768): 1_364_968,
    ("ep_16", 768): 1_371_112,
    ("ep_32", 768): 1_383_400,
    ("ep_64", 768): 1_407_976,
    ("ep_128", 768): 1_457_128,
    ("ep_32", 384): 544_744,
    ("ep_32", 1024): 2_106_344,
    ("linear", 768): CLASSIFIER,
    ("cls", 768): CLASSIFIER,
    ("gap", 768): CLASSIFIER,
    ("abmilp", 768): CLASSIFIER + 2_951_425,
    ("simpool", 768): CLASSIFIER + 2 * D**2 + 2 * D,
    ("clip", 768): CLASSIFIER + 2_515_200,
    ("siglip", 768): CLASSIFIER + 12 * D**2 + 10 * D,
    ("aim", 768): 1_949_416,
    ("cae", 768): CLASSIFIER + 4 * D**2 + 10 * D,
    ("coca", 768): CLASSIFIER + 1349 * D,
    ("cait", 768): CLASSIFIER + 12 * D**2 + 18 * D,
    ("jepa", 768): CLASSIFIER + 12 * D**2 + 14 * D,
    ("dinovit", 768): CLASSIFIER + 12 * D**2 + 10 * D,
    ("capi", 768): CLASSIFIER + 2 * D**2 + 3 * D,
    # Of these the table gives an order only.
    ("dolg", 768): CLASSIFIER + D**2 + 4 * D + 1,
    ("cbam", 768): CLASSIFIER + D**2 // 8 + 2 * 7**2 + 2,
    ("delf", 768): CLASSIFIER + 512 * D + 2 * 512 + 1,
    ("gem", 768): CLASSIFIER + 1,
}

FOLDED = ("aim", "cae", "cait", "capi", "clip", "coca", "jepa", "siglip", "simpool")


def attention(query: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Pool `[B, heads * head_dim]` for every query, with its weights, from `[B, N, heads * head_dim]`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (query.expand(len(keys), -1), keys, values))
    weights = (torch.einsum("bhd,bnhd->bhn", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhn,bnhd->bhd", weights, v).flatten(1), weights


def naive_ep(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    weights = (pool.queries * x.shape[-1] ** -0.5 @ x.mT).softmax(-1)
    values = pool.v(x).unflatten(-1, (len(pool.queries), -1))
    return torch.einsum("bmn,bnmc->bmc", weights, values).flatten(1), weights


def naive_aim(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-6).sqrt()
    return attention(pool.query, pool.k(x), pool.v(x), pool.num_heads)


def naive_capi(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return attention(pool.query, pool.k(x), pool.v(x), pool.num_heads)


def naive_cae(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    query, keys, values = pool.q(pool.norm_q(pool.query)), pool.k(pool.norm_k(x)), pool.v(pool.norm_v(x))
    pooled, weights = attention(query, keys, values, pool.num_heads)
    return pool.proj(pooled), weights


def naive_coca(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    heads = pool.num_heads
    results = [
        attention(query, pool.k(x).repeat(1, 1, heads), pool.v(x).repeat(1, 1, heads), heads)
        for query in pool.q(pool.norm(pool.queries))
    ]
    return pool.proj(results[0][0]), results[0][1]


def naive_simpool(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    normed = pool.norm(x)
    return attention(pool.q(x.mean(1)), pool.k(normed), normed, 1)


def naive_clip(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = pool.norm(x)
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + pool.pos_embed
    # Self-attention of all, of which the first row is kept.
    q, k, v = (part(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2) for part in (pool.q, pool.k, pool.v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return pool.proj((weights @ v).transpose(1, 2).flatten(2))[:, 0], weights[:, :, 0, 1:]


def naive_siglip(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = pool.block.kv(x).chunk(2, -1)
    return pool.block(x), attention(pool.block.q(pool.block.latent)[0], keys, values, pool.num_heads)[1]


def naive_cait(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    cls = pool.cls_token.expand(len(x), 1, -1)
    attn, normed = pool.block.attn, pool.block.norm1(torch.cat([cls, x], dim=1))
    _, weights = attention(attn.q(normed[:, 0]), attn.k(normed), attn.v(normed), pool.num_heads)
    return pool.norm(pool.block(x, cls))[:, 0], weights[..., 1:]


def naive_jepa(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = pool.norm1(x)
    pooled, weights = attention(pool.q(pool.query), pool.k(x), pool.v(x), pool.num_heads)
    y = pool.query + pool.proj(pooled)
    return y + pool.mlp(pool.norm2(y)), weights


def naive_abmilp(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = pool.self_attention.qkv(x).chunk(3, -1)
    x = pool.self_attention.proj((q @ k.mT / math.sqrt(x.shape[-1])).softmax(-1) @ v)
    weights = pool.score(torch.tanh(pool.hidden(x))).softmax(1)
    return (weights * x).sum(1), weights.mT


def as_map(x: Tensor) -> Tensor:
    return x.mT.unflatten(-1, (3, 3))  # [B, dim, 3, 3]


def conv(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def naive_delf(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = as_map(x)
    scores = F.softplus(conv(pool.score[2], F.relu(conv(pool.score[0], x))))
    return (scores * x).sum((2, 3)), scores.flatten(2)


def naive_dolg(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.batch_norm(conv(pool.proj, as_map(x)), None, None, pool.norm.weight, pool.norm.bias, training=True)
    gates = F.softplus(conv(pool.gate[1], F.relu(x)))
    return (gates * x / x.norm(dim=1, keepdim=True)).mean((2, 3)), gates.flatten(2)


def naive_cbam(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = as_map(x)
    x = x * (pool.mlp(x.mean((2, 3))) + pool.mlp(x.amax((2, 3)))).sigmoid()[:, :, None, None]
    gates = pool.norm(pool.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))).sigmoid()
    return (gates * x).mean((2, 3)), gates.flatten(2)


NAIVE: dict[str, Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    "ep_1": naive_ep,
    "ep_8": naive_ep,
    "abmilp": naive_abmilp,
    "aim": naive_aim,
    "cae": naive_cae,
    "cait": naive_cait,
    "capi": naive_capi,
    "cbam": naive_cbam,
    "clip": naive_clip,
    "coca": naive_coca,
    "delf": naive_delf,
    "dolg": naive_dolg,
    "jepa": naive_jepa,
    "siglip": naive_siglip,
    "simpool": naive_simpool,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "dim"), PARAMETERS)
def test_parameters_equal_the_table(name, dim):
    with torch.device("meta"):
        assert count(create_head(name, dim, 1000)) == PARAMETERS[name, dim]


@pytest.mark.parametrize(("d_out", "expected"), [(2, 704_488), (4, 365_032), (8, 195_304)])
def test_parameters_of_narrower_features(d_out, expected):
    with torch.device("meta"):
        head = create_head("ep_32", 768, 1000, d_out=d_out)
    assert count(head) == expected
    assert head.num_features == 768 // d_out


def test_parameter_table_holds_every_head():
    assert {name for name, _ in PARAMETERS} >= set(list_heads())
    assert {name for name in list_heads() if create_head(name, 64, 5).has_attention} <= {*NAIVE, "ep_32"}


@pytest.mark.parametrize("name", NAIVE)
def test_outputs_and_gradients_equal_projecting_first(name):
    head, tokens = small(name), make_tokens(3, 9, 64)
    features, weights = NAIVE[name](head.pool, tokens)
    if name != "capi":
        features = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-6).sqrt()
    expected = head.classifier(features)
    found = head(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.attention(tokens), weights, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    leaves = {"tokens": tokens, **dict(head.named_parameters())}
    ours, theirs = (torch.autograd.grad(out, list(leaves.values()), upstream) for out in (found, expected))
    for leaf, one, other in zip(leaves, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@pytest.mark.parametrize(("d_out", "num_queries"), [(2, 1), (2, 32), (4, 16), (64, 1)])
def test_ep_with_narrower_features(d_out, num_queries):
    head, tokens = small(f"ep_{num_queries}", d_out=d_out), make_tokens(3, 7, 64)
    found, expected = head.pool(tokens), naive_ep(head.pool, tokens)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == (3, 64 // d_out)


def test_ep_costs_as_much_as_pooling_first():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_head("ep_32", 768, 1000).pool(torch.empty(1, 196, 768))
    assert counter.get_total_flops() == 2 * (2 * 196 * 32 * 768 + 768 * 768)


@pytest.mark.parametrize("name", FOLDED)
def test_keys_and_values_are_never_made(name):
    num_tokens = 4096  # so many that nothing done once per image matters
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        options = {"num_tokens": num_tokens} if name == "clip" else {}
        create_head(name, 768, 10, **options).pool(torch.empty(1, num_tokens, 768))
    assert counter.get_total_flops() < 2 * num_tokens * 768**2 / 4


@pytest.mark.parametrize(("name", "kind"), [("cls", "cls"), ("gap", "patches"), ("linear", "cls_or_patches")])
def test_linear_heads_classify_the_normalised_mean(name, kind):
    head, tokens = small(name), make_tokens(4, 1 if name == "cls" else 9, 64)
    mean = tokens.mean(1)
    normed = (mean - mean.mean(0)) / (mean.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(head(tokens), F.linear(normed, head.classifier.weight, head.classifier.bias))
    assert head.tokens == kind


def test_gem_is_the_generalised_mean():
    head, tokens = create_head("gem", 64, 5).double(), make_tokens(2, 9, 64)
    expected = (tokens.clamp(min=1e-6) ** 3).mean(1) ** (1 / 3)
    torch.testing.assert_close(head.pool(tokens), expected)
    grads = (torch.autograd.grad(out.sum(), tokens)[0] for out in (head.pool(tokens), expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("p", "statistic"), [(1.0, lambda x: x.mean(1)), (1000.0, lambda x: x.amax(1))])
def test_gem_lies_between_mean_and_maximum(p, statistic):
    head, tokens = create_head("gem", 64, 5), torch.rand(2, 9, 64)
    head.pool.p.data.fill_(p)
    torch.testing.assert_close(head.pool(tokens), statistic(tokens), rtol=3e-3, atol=1e-5)


def test_gem_of_tokens_that_are_all_negative_has_gradients():
    head, tokens = create_head("gem", 64, 5), -torch.rand(2, 9, 64)
    head.pool.p.data.fill_(12.0)  # 1e-6 ** 12 is 0 in float32
    pooled = head.pool(tokens)
    pooled.sum().backward()
    torch.testing.assert_close(pooled, torch.full_like(pooled, 1e-6))
    assert head.pool.p.grad.isfinite()


def test_dinovit_is_a_block_and_a_mean():
    head, tokens = small("dinovit"), make_tokens(2, 9, 64)
    torch.testing.assert_close(head.pool(tokens), head.pool.block(tokens).mean(1))


@pytest.mark.parametrize("name", [name for name in HEADS if name in NAIVE or name == "ep_32"])
def test_attention_of_queries_adds_up_to_one(name):
    head, tokens = small(name).eval(), make_tokens(2, 9, 64)
    weights = head.attention(tokens)
    assert weights.shape[::2] == (2, 9)
    assert (weights >= 0).all()
    total = weights.sum(-1)
    if name in ("cait", "clip"):
        assert ((total > 0) & (total < 1)).all()
    elif name not in ("cbam", "delf", "dolg"):
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("name", "expected"), [("ep_8", 8), ("aim", 16), ("cae", 8), ("capi", 8), ("clip", 4), ("coca", 8), ("simpool", 1)]
)
def test_attention_has_a_row_per_query_or_head(name, expected):
    assert small(name).eval().attention(make_tokens(2, 9, 64)).shape == (2, expected, 9)


def test_idle_queries_of_coca_have_no_gradient():
    head = small("coca")
    head(make_tokens(2, 9, 64)).sum().backward()
    assert head.pool.queries.grad.shape == (3, 64)
    assert not head.pool.queries.grad[1:].any()


@pytest.mark.usefixtures("same_threads")
def test_benchmark(monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--output", str(tmp_path / "heads.csv")]
    assert bench.main(arguments) == 0
    rows = report.read_rows(tmp_path / "heads.csv")
    assert {(row["head"], row["direction"], row["contender"]) for row in rows} == {
        ("ep_32", direction, contender)
        for direction in ("inference", "training")
        for contender in ("visionattn", "project-first")
    }

    monkeypatch.setattr(bench.ProjectFirst, "forward", lambda self, tokens: 1.01 * self.head(tokens))
    assert bench.main(arguments) == 1
    assert "ep_32 differs by" in capsys.readouterr().err
