"""Heads that are trained together become what each becomes alone; choices never look at val."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bench import probing_joint as bench
from kernels.bench import report
from visionattn.probing.features.extraction import PooledKind
from visionattn.probing.features.sources import FeatureSource, TensorFeatures
from visionattn.probing.heads import create_head, select_tokens
from visionattn.probing.protocols import (
    Candidate,
    Recipe,
    Selection,
    knn,
    logistic_regression,
    paper_protocol,
    ridge,
    sweep,
    train_heads,
)
from visionattn.probing.protocols import shared as shared_module
from visionattn.probing.protocols import stack as stack_module
from visionattn.probing.protocols.joint import JointTraining
from visionattn.probing.protocols.split import draw, hold_out, random_order
from visionattn.probing.protocols.trial import Trial

DIM, CLASSES, PREFIX, REGISTERS = 24, 3, 3, 2
F64 = torch.float64

HEADS = [
    "ep_1",
    "ep_4",
    ("ep_4", {"d_out": 2}),
    ("ep_4", {"tokens": "all"}),
    ("aim", {"num_heads": 4}),
    ("aim", {"num_heads": 2, "tokens": "all"}),
    "linear",
    "abmilp",
    "dolg",
]


def make_features(count: int, seed: int, classes: int = CLASSES, signal: float = 1.0) -> TensorFeatures:
    """A class token, two registers and nine patches; each class is a direction that patches lean to."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(classes, 1, DIM, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(classes, (count,), generator=generator)
    tokens = torch.randn(count, PREFIX + 9, DIM, generator=generator) + signal * directions[targets]
    return TensorFeatures(tokens, targets, PREFIX, REGISTERS)


def train_plainly(
    candidate: Candidate, source: FeatureSource, recipe: Recipe, make_optimizer: Callable[..., torch.optim.Optimizer]
) -> tuple[nn.Module, list[float]]:
    """One head with torch alone: its weights at the end, and the loss of each epoch."""
    fitted, _ = hold_out(source.targets, recipe.held_out, recipe.seed)
    torch.manual_seed(recipe.seed)
    head = create_head(candidate.head, DIM, CLASSES, **candidate.options).double()
    optimizer = make_optimizer(head, candidate)
    steps = math.ceil(len(fitted) / recipe.batch_size)
    warmup, total = int(steps * min(recipe.warmup_epochs, recipe.epochs / 4)), steps * recipe.epochs
    losses, step = [], 0
    for epoch in range(recipe.epochs):
        order, sum_of_losses = fitted[random_order(len(fitted), recipe.seed, epoch)], 0.0
        for part in order.split(recipe.batch_size):
            x = select_tokens(source.tokens[part].double(), head.tokens, PREFIX, REGISTERS)
            loss = F.cross_entropy(head(x), source.targets[part])
            loss.backward()
            cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
            for group in optimizer.param_groups:
                group["lr"] = candidate.lr * (step / warmup if step < warmup else cosine)
            optimizer.step()
            optimizer.zero_grad()
            sum_of_losses += loss.item() * len(part)
            step += 1
        losses.append(sum_of_losses / len(order))
    return head, losses


def adamw(head: nn.Module, candidate: Candidate) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in head.parameters() if p.dim() > 1], "weight_decay": candidate.weight_decay},
        {"params": [p for p in head.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=candidate.lr)


class PlainLars(torch.optim.Optimizer):
    """g ← 0.001 · |w| / |g| · g where w has two axes or more; m ← 0.9 m + g; w ← w - lr · m."""

    def __init__(self, head: nn.Module, candidate: Candidate) -> None:
        super().__init__(head.parameters(), {"lr": candidate.lr})

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            scale = 0.001 * p.norm() / p.grad.norm() if p.dim() > 1 else 1.0
            self.state[p]["m"] = 0.9 * self.state[p].get("m", 0.0) + scale * p.grad
            p -= self.param_groups[0]["lr"] * self.state[p]["m"]


@pytest.mark.parametrize(
    ("optimizer", "lrs", "make_optimizer"),
    [("adamw", (1e-3, 1e-2), adamw), ("lars", (0.1, 0.5), PlainLars)],
)
def test_heads_train_together_as_they_train_alone(monkeypatch, optimizer, lrs, make_optimizer):
    monkeypatch.setattr(shared_module, "CHUNK", 7)  # batches are cut, with a remainder
    monkeypatch.setattr(stack_module, "MAX_QUERIES", 14)
    train = make_features(101, 0)
    candidates = sweep(HEADS, lrs, optimizer, weight_decay=0.1 if optimizer == "adamw" else 0.0)
    recipe = Recipe(epochs=5, batch_size=32, warmup_epochs=1, patience=None)
    training = JointTraining(train, train, candidates, CLASSES, recipe, dtype=F64)
    training.fit()
    for trial in training.trials:
        head, losses = train_plainly(trial.candidate, train, recipe, make_optimizer)
        assert trial.losses == pytest.approx(losses, rel=1e-10), trial.candidate
        assert losses[-1] < losses[0]
        for (name, expected), found in zip(head.state_dict().items(), trial.head.state_dict().values(), strict=True):
            if (trial.candidate.head, name) == ("dolg", "pool.proj.bias"):
                continue  # batch norm takes it off again: its gradient is what rounding leaves
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=f"{trial.candidate}: {name}")


def test_gradients_of_shared_products(monkeypatch):
    monkeypatch.setattr(shared_module, "CHUNK", 2)
    tokens = torch.randn(5, 4, 6, dtype=F64)
    inputs = [torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((5, 6), (2, 3, 6), (3, 1, 6))]
    assert torch.autograd.gradcheck(lambda *inputs: shared_module._Pool.apply(tokens, *inputs), inputs)
    inputs = [torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((2, 5, 6), (2, 3, 6), (2, 3))]
    assert torch.autograd.gradcheck(shared_module._Classify.apply, inputs)


def test_shares_have_similar_sizes_and_one_kind_of_tokens(monkeypatch):
    monkeypatch.setattr(stack_module, "MAX_QUERIES", 10)
    kinds = [
        ("ep_4", {}),
        ("gap", {}),
        ("ep_1", {}),
        ("ep_4", {"tokens": "all"}),
        ("aim", {"num_heads": 4}),
        ("ep_2", {}),
    ]
    heads = [create_head(name, DIM, CLASSES, **options) for name, options in kinds]
    stack = stack_module.HeadStack(heads, PREFIX, REGISTERS)
    shares = [numbers for numbers, _ in stack.logits(torch.randn(2, PREFIX + 9, DIM))]
    assert shares == [[3], [2, 5], [4, 0], [1]]


def test_stack_evaluates_heads_as_alone():
    heads = []
    for name, options in [("ep_4", {}), ("aim", {"num_heads": 4}), ("aim", {"num_heads": 4}), ("gap", {})]:
        head = create_head(name, DIM, CLASSES, **options).double()
        head(torch.randn(6, 9, DIM, dtype=F64) + 1)  # batch norms have seen something, each something else
        heads.append(head.eval())
    tokens = torch.randn(5, PREFIX + 9, DIM, dtype=F64)
    stack = stack_module.HeadStack(heads, PREFIX, REGISTERS)
    shares = dict(pair for numbers, logits in stack.logits(tokens) for pair in zip(numbers, logits, strict=True))
    for number, head in enumerate(heads):
        torch.testing.assert_close(shares[number], head(tokens[:, PREFIX:]))


def test_trial_that_diverges_or_stops_leaves_the_others_alone():
    train, recipe = make_features(80, 0, signal=0.3), Recipe(epochs=6, batch_size=16, patience=2)
    candidates = sweep(["ep_4", ("aim", {"num_heads": 4})], (1e-3, 1e-2))
    alone = JointTraining(train, train, candidates, CLASSES, recipe, dtype=F64)
    alone.fit()
    diverging = [Candidate("ep_4", 1e200), Candidate("aim", 1e200, {"num_heads": 4}), Candidate("abmilp", 1e200)]
    together = JointTraining(train, train, [*diverging, *candidates], CLASSES, recipe, dtype=F64)
    together.fit()
    assert all(trial.stopped for trial in together.trials[:3])
    assert all(torch.isfinite(value).all() for trial in together.trials[:3] for value in trial.best.values())
    assert len({len(trial.losses) for trial in alone.trials}) > 1, "of these some are to stop earlier than others"
    for trial, expected in zip(together.trials[3:], alone.trials, strict=True):
        assert trial.losses == pytest.approx(expected.losses, rel=1e-9)
        assert (trial.best_epoch, trial.best_accuracy) == (expected.best_epoch, expected.best_accuracy)


def test_trial_keeps_its_best_weights_and_stops_after_its_patience():
    trial = Trial(Candidate("gap", 0.1), create_head("gap", DIM, CLASSES))
    weight = trial.head.classifier.bias
    for epoch, accuracy in enumerate([0.2, 0.6, 0.5, 0.6, 0.4], 1):
        assert not trial.stopped
        with torch.no_grad():
            weight.fill_(epoch)
        trial.note(loss=1.0, accuracy=accuracy, seconds=2.0, patience=3)
    assert trial.stopped
    assert (trial.best_epoch, trial.best_accuracy, trial.seconds) == (2, 0.6, 10.0)
    assert trial.best["classifier.bias"].tolist() == [2.0] * CLASSES


def test_trailing_candidates_of_each_head_stop():
    train, recipe = make_features(80, 0, signal=0.3), Recipe(epochs=6, batch_size=16, race=True)
    candidates = sweep(["ep_4", "gap"], (1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    race = JointTraining(train, train, candidates, CLASSES, recipe, dtype=F64)
    race.fit()
    to_the_end = JointTraining(train, train, candidates, CLASSES, replace(recipe, race=False), dtype=F64)
    to_the_end.fit()
    for trials in (race.trials[:5], race.trials[5:]):
        assert sorted(len(trial.losses) for trial in trials) == [2, 2, 2, 4, 6]  # 5 // 2 go on, 2 // 2 to the end
    for trial, whole in zip(race.trials, to_the_end.trials, strict=True):
        assert trial.losses == pytest.approx(whole.losses[: len(trial.losses)], rel=1e-9)
    winner = max(race.trials[:5], key=lambda trial: len(trial.losses))
    assert winner.best_accuracy >= max(trial.best_accuracy for trial in race.trials[:5])


class Guarded(TensorFeatures):
    """Val that may be read once `open`; before, its labels are poison."""

    def __init__(self, features: TensorFeatures) -> None:
        self.open, self.reads = False, 0
        super().__init__(features.tokens, features.targets, PREFIX, REGISTERS)

    @property
    def targets(self) -> Tensor:
        return self._targets if self.open else torch.full_like(self._targets, -100)

    @targets.setter
    def targets(self, targets: Tensor) -> None:
        self._targets = targets

    def batches(self, indices: Tensor, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.open, "val was read before the end"
        self.reads += 1
        return super().batches(indices, batch_size, epoch)

    def pooled(self, kind: PooledKind) -> Tensor:
        self.open = True  # what reads vectors has nothing to choose any more, see the test
        self.reads += 1
        return super().pooled(kind)


def test_val_is_read_once_and_after_all_choices():
    train, val = make_features(120, 0), make_features(60, 1)
    candidates, recipe = sweep(["ep_4", "linear", "abmilp"], (1e-3, 1e-2)), Recipe(epochs=4, batch_size=32)
    guarded = Guarded(val)

    def progress(done: int, total: int) -> None:
        guarded.open = done == total

    results = train_heads(train, guarded, candidates, CLASSES, recipe, progress=progress)
    assert guarded.reads == 1
    expected = train_heads(train, val, candidates, CLASSES, recipe)
    for found, result in zip(results, expected, strict=True):
        head = result.head
        assert found.to_dict() | {"seconds": 0} == result.to_dict() | {"seconds": 0}
        assert (result.selected_on, result.num_parameters) == ("held_out", sum(p.numel() for p in head.parameters()))
        scores = head(select_tokens(val.tokens, head.tokens, PREFIX, REGISTERS))
        assert result.top1 == pytest.approx((scores.argmax(1) == val.targets).double().mean().item())
        assert result.top1 > 0.6
        assert result.top5 == 1
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in head.parameters()), "weights are not shared"


@pytest.mark.parametrize("protocol", [knn, ridge, logistic_regression])
def test_choices_of_vectors_are_the_same_whatever_val_is(protocol):
    train = make_features(150, 0, signal=0.3)
    choices = [protocol(train, make_features(40, seed), CLASSES) for seed in (1, 2)]
    guarded = Guarded(make_features(40, 1))
    choices.append(protocol(train, guarded, CLASSES))
    assert guarded.reads == 1
    assert len({(str(choice.options), choice.held_out_accuracy) for choice in choices}) == 1
    assert choices[0].top1 == choices[2].top1 != choices[1].top1


def test_protocol_of_the_paper():
    candidates, recipe = paper_protocol(["ep_4"], batch_size=32)
    assert [candidate.lr for candidate in candidates] == [lr * 32 / 256 for lr in (0.1, 0.2, 0.5, 0.7, 1, 1.2, 1.5)]
    assert {(candidate.optimizer, candidate.weight_decay) for candidate in candidates} == {("lars", 0.0)}
    assert (recipe.epochs, recipe.warmup_epochs, recipe.patience) == (90, 10, None)
    train, val = make_features(64, 0), make_features(40, 1)
    (result,) = train_heads(train, val, candidates, CLASSES, recipe)
    assert (result.selected_on, result.held_out_accuracy) == ("val", None)
    assert result.top1 == (result.head(val.tokens[:, PREFIX:]).argmax(1) == val.targets).double().mean().item()
    for protocol in (knn, ridge):
        found = protocol(train, val, CLASSES, selection=Selection(selected_on="val"))
        assert (found.selected_on, found.held_out_accuracy) == ("val", None)


def test_parts_of_train():
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [3])
    rest, held = hold_out(targets, 0.1, seed=3)
    assert targets[held].bincount(minlength=4).tolist() == [5, 3, 1, 0]
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(targets)))
    assert torch.equal(held, hold_out(targets, 0.1, seed=3)[1])
    assert not torch.equal(held, hold_out(targets, 0.1, seed=4)[1])
    drawn = draw(targets[:-1], 3, seed=0)
    assert targets[drawn].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_last_batch_of_one_image_is_left_out():
    train = make_features(33, 0)
    training = JointTraining(train, train, [Candidate("gap", 0.1)], CLASSES, Recipe(1, 32, selected_on="val"))
    training.fit()
    assert training.steps == 1


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("rate of head gap must be above 0; got 0", lambda: Candidate("gap", 0)),
        ("must be 'adamw' or 'lars'; got 'sgd'", lambda: Candidate("gap", 1, optimizer="sgd")),
        ("epochs must be at least 1; got 0", lambda: Recipe(epochs=0)),
        ("patience must be at least 1 epoch, or None for never; got 0", lambda: Recipe(patience=0)),
        ("between 0 and 1; got 1", lambda: hold_out(torch.zeros(4, dtype=torch.long), 1)),
        ("none of the 2 images can be held out", lambda: hold_out(torch.arange(2))),
        ("5 images per class: class 0 has 4", lambda: draw(torch.zeros(4, dtype=torch.long), 5)),
        ("there is no candidate", lambda: train_heads(make_features(9, 0), make_features(9, 1), [], 3)),
        ("got 0 to 2; raise num_classes", lambda: knn(make_features(9, 0), make_features(9, 1), 2)),
        (
            "num_reg_tokens of train is 2 and of val 0; extract both",
            lambda: ridge(make_features(9, 0), TensorFeatures(torch.zeros(2, 9, DIM), torch.zeros(2), PREFIX), 3),
        ),
        ("lambda must be above 0; got 0", lambda: ridge(make_features(9, 0), make_features(9, 1), 3, lambdas=[0])),
        ("no hyper-parameters to choose", lambda: knn(make_features(9, 0), make_features(9, 1), 3, ks=[])),
        ("no head is named 'ep'", lambda: train_heads(make_features(9, 0), make_features(9, 1), sweep(["ep"]), 3)),
    ],
)
def test_errors_are_one_line(message, call):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("same_threads")
def test_benchmark(monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--threads", "1", "--repeats", "1", "--heads", "ep_2,aim_3"]
    assert bench.main([*arguments, "--output", str(tmp_path / "joint.csv")]) == 0
    rows = report.read_rows(tmp_path / "joint.csv")
    assert [row["contender"] for row in rows] == ["visionattn", "plain loop", "singly"]

    monkeypatch.setattr(bench, "random_order", lambda count, *seed: torch.arange(count))
    assert bench.main(arguments) == 1
    assert "differ by" in capsys.readouterr().err
