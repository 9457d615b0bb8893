"""k-NN is a brute-force search, ridge and logistic regression are scikit-learn's, few-shot draws are what they say."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from visionattn.probing.features.sources import FeatureSource, TensorFeatures
from visionattn.probing.protocols import (
    HeadResult,
    Recipe,
    Selection,
    few_shot,
    knn,
    logistic_regression,
    ridge,
    selection,
    sweep,
    train_heads,
)
from visionattn.probing.protocols import linear as linear_module
from visionattn.probing.protocols.knn import KS, TEMPERATURES
from visionattn.probing.protocols.split import hold_out

knn_module = sys.modules["visionattn.probing.protocols.knn"]  # the function of this name hides it
DIM, CLASSES = 12, 7


def make_features(count: int, seed: int, signal: float = 0.6, classes: int = CLASSES) -> TensorFeatures:
    """Three patches of each image, no class token."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(classes, 1, DIM, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(classes, (count,), generator=generator)
    tokens = 3 + torch.randn(count, 3, DIM, generator=generator) + signal * directions[targets]
    return TensorFeatures(tokens, targets)


def brute_force(queries: TensorFeatures, bank: TensorFeatures, k: int, temperature: float) -> tuple[float, float]:
    """Top-1 and top-5 of k-NN, one image after another."""
    vectors = bank.pooled("gap").double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    ranks = []
    for query, target in zip(queries.pooled("gap").double(), queries.targets.tolist(), strict=True):
        cosines = (vectors @ query / query.norm()).tolist()
        votes = [0.0] * CLASSES
        for number in sorted(range(len(bank)), key=lambda number: -cosines[number])[:k]:
            votes[int(bank.targets[number])] += math.exp(cosines[number] / temperature)
        answers = [label for label in sorted(range(CLASSES), key=lambda label: -votes[label]) if votes[label]]
        ranks.append(answers.index(target) if target in answers else CLASSES)
    return (np.array(ranks) < 1).mean(), (np.array(ranks) < 5).mean()


def take(features: TensorFeatures, indices: torch.Tensor) -> TensorFeatures:
    return TensorFeatures(features.tokens[indices], features.targets[indices])


def test_knn_is_a_brute_force_search(monkeypatch):
    monkeypatch.setattr(knn_module, "BANK", 37)
    monkeypatch.setattr(selection, "IMAGES", 16)
    train, val = make_features(260, 0), make_features(50, 1)
    for k, temperature in ((1, 0.07), (20, 0.1), (200, 0.2), (1000, 0.07)):
        result = knn(train, val, CLASSES, ks=[k], temperatures=[temperature])
        assert (result.top1, result.top5) == brute_force(val, train, k, temperature)
        assert (result.selected_on, result.held_out_accuracy) == (None, None)
        assert result.options == {"features": "gap", "k": k, "temperature": temperature}

    result = knn(train, val, CLASSES)
    rest, held = (take(train, part) for part in hold_out(train.targets))
    rates = {(k, t): brute_force(held, rest, k, t)[0] for k in KS for t in TEMPERATURES}
    assert result.held_out_accuracy == max(rates.values())
    k, temperature = result.options["k"], result.options["temperature"]
    assert rates[k, temperature] == max(rates.values())
    assert (result.top1, result.top5) == brute_force(val, train, k, temperature)


def test_knn_and_ridge_are_shared_by_processes(tmp_path):
    """Each of two processes classifies a part of val, and each finds neighbours that the other would have."""
    command = [sys.executable, "-m", "tests.probing.test_protocols_pooled", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == [classify()] * 2


def classify() -> str:
    train, val = make_features(120, 0), make_features(41, 1)
    return str([protocol(train, val, CLASSES).to_dict() | {"seconds": 0} for protocol in (knn, ridge)])


def classify_together(rank: int, folder: str) -> None:
    selection.IMAGES = 8  # so that each has a part of val
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    Path(folder, str(rank)).write_text(classify())
    dist.destroy_process_group()


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_ridge_is_that_of_scikit_learn(monkeypatch, classes):
    monkeypatch.setattr(linear_module, "ROWS", 23)
    train, val = make_features(150, 0, classes=classes), make_features(40, 1, classes=classes)
    x, y, queries = train.pooled("gap").double(), train.targets, val.pooled("gap").double()
    moments = linear_module.Moments(DIM, classes)
    for start in range(0, len(x), 23):
        moments.add(x[start : start + 23], y[start : start + 23])
    alphas = [1e-3, 1.0, 50.0]
    weights, biases = moments.solve(alphas)
    signs = 2.0 * np.eye(classes)[y.numpy()] - 1
    for alpha, weight, bias in zip(alphas, weights.numpy(), biases.numpy(), strict=True):
        expected = Ridge(alpha=alpha).fit(x.numpy(), signs)
        np.testing.assert_allclose(weight, expected.coef_, atol=1e-8)
        np.testing.assert_allclose(bias, expected.intercept_, atol=1e-8)
        classifier = RidgeClassifier(alpha=alpha).fit(x.numpy(), y.numpy())
        scores = queries.numpy() @ weight.T + bias
        np.testing.assert_allclose(
            scores[:, 1:].squeeze() if classes == 2 else scores,
            classifier.decision_function(queries.numpy()),
            atol=1e-8,
        )
        assert (scores.argmax(1) == classifier.predict(queries.numpy())).all()

    result = ridge(train, val, classes, lambdas=[0.1])
    gram = np.cov(x.numpy().T, bias=True) * len(x)
    classifier = RidgeClassifier(alpha=0.1 * np.trace(gram) / DIM).fit(x.numpy(), y.numpy())
    assert result.top1 == classifier.score(queries.numpy(), val.targets.numpy())
    assert (result.head(val.tokens).argmax(1).numpy() == classifier.predict(queries.numpy())).all()
    assert result.num_parameters == classes * DIM + classes


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_logistic_regression_is_that_of_scikit_learn(classes):
    train, val = make_features(150, 0, classes=classes), make_features(40, 1, classes=classes)
    x, queries = train.pooled("gap").numpy(), val.pooled("gap").numpy()
    result = logistic_regression(train, val, classes, cs=[0.1])
    expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)
    expected.fit((x - x.mean(0)) / x.std(0), train.targets.numpy())
    probabilities = result.head(val.tokens).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba((queries - x.mean(0)) / x.std(0)), atol=2e-3)
    assert result.top1 == (probabilities.argmax(1) == val.targets.numpy()).mean()


def test_penalties_are_chosen_on_the_part_that_is_held_out():
    train, val = make_features(90, 0, signal=0.3), make_features(40, 1)
    rest, held = (take(train, part) for part in hold_out(train.targets, seed=5))
    for protocol, name, values in (
        (ridge, "lambdas", (1e-3, 0.1, 10.0)),
        (logistic_regression, "cs", (1e-3, 0.1, 10.0)),
    ):
        result = protocol(train, val, CLASSES, **{name: values}, selection=Selection(seed=5))
        rates = [protocol(rest, held, CLASSES, **{name: [value]}).top1 for value in values]
        assert result.held_out_accuracy == max(rates)
        chosen = values[rates.index(max(rates))]
        assert chosen in result.options.values()
        assert result.top1 == protocol(train, val, CLASSES, **{name: [chosen]}).top1
        assert result.top1 == (result.head(val.tokens).argmax(1) == val.targets).double().mean().item()


def test_class_without_images_is_never_the_answer():
    train, val = make_features(60, 0), make_features(20, 1)
    train.targets[train.targets == 3] = 4
    for protocol in (knn, ridge, logistic_regression):
        head = protocol(train, val, CLASSES).head
        assert head is None or not (head(val.tokens).argmax(1) == 3).any()


def test_few_shot_draws():
    train, val = make_features(140, 0), make_features(60, 1)
    sizes, seeds, steps = [], [], []

    def evaluate(part: FeatureSource, seed: int) -> list[HeadResult]:
        sizes.append(part.targets.bincount().tolist())
        seeds.append(seed)
        recipe = Recipe(epochs=3, batch_size=16, seed=seed)
        return [
            knn(part, val, CLASSES, selection=Selection(seed=seed)),
            ridge(part, val, CLASSES, selection=Selection(seed=seed)),
            *train_heads(part, val, sweep(["ep_4"], [1e-2]), CLASSES, recipe),
        ]

    results = few_shot(evaluate, train, 5, 3, seed=2, progress=lambda done, total: steps.append((done, total)))
    assert sizes == [[5] * CLASSES] * 3
    assert (seeds, steps) == ([2, 3, 4], [(1, 3), (2, 3), (3, 3)])
    assert [result.name for result in results] == ["knn", "ridge", "ep_4"]
    for result in results:
        rates = [draw.top1 for draw in result.draws]
        assert result.top1 == pytest.approx(np.mean(rates))
        assert result.top1_std == pytest.approx(np.std(rates, ddof=1))
        assert len(set(rates)) > 1
    again = few_shot(evaluate, train, 5, 3, seed=2)
    assert [result.top1 for result in again] == [result.top1 for result in results]


def test_one_shot_leaves_nothing_to_choose():
    train, val = make_features(60, 0), make_features(20, 1)
    (result,) = few_shot(lambda part, _: [knn(part, val, CLASSES, ks=[1], temperatures=[0.07])], train, 1, 1)
    assert (result.top1_std, result.draws[0].selected_on) == (0.0, None)
    with pytest.raises(ValueError, match="take at least 2 per class, or leave nothing to choose"):
        few_shot(lambda part, _: [knn(part, val, CLASSES)], train, 1, 1)


if __name__ == "__main__":
    torch.set_num_threads(1)  # so that processes can be forked, which need not import everything again
    torch.multiprocessing.start_processes(classify_together, (sys.argv[1],), nprocs=2, start_method="fork")
