"""Comparisons whose failure is a lesson: the first place that differs, what it is, what it was."""

import torch


def close(name, found, expected, atol=1e-5, rtol=1e-5):
    """Equal shapes, and numbers that are equal but for rounding; no difference of types matters."""
    found, expected = (
        torch.as_tensor(value, dtype=torch.float64).detach() for value in (found, expected)
    )
    sizes, wanted = list(found.shape), list(expected.shape)
    assert sizes == wanted, f"{name} has shape {sizes}, expected {wanted}"
    wrong = ~found.isclose(expected, atol=atol, rtol=rtol)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        there = f"{name}{place}" if place else name
        a, b = expected[tuple(place)].item(), found[tuple(place)].item()
        error = AssertionError(
            f"{there}: expected {a:.6g}, found {b:.6g} ({wrong.sum()} of {wrong.numel()} differ)"
        )
        error.compared = found, expected  # what pytest --pictures draws
        raise error


def equal(name, found, expected):
    """The same to the last bit."""
    close(name, found, expected, atol=0, rtol=0)


def within_chance(name, found, expected, deviation):
    """No farther than five standard deviations, which chance does once in a million."""
    difference = abs(float(found) - float(expected))
    assert difference <= 5 * deviation, (
        f"{name}: expected {expected:.4g} +- {5 * deviation:.2g}, found {float(found):.4g}"
    )


def follows(name, sample, distribution):
    """Kolmogorov and Smirnov: the share below each value is what the distribution function says."""
    sample = torch.as_tensor(sample).detach().double().flatten().sort().values
    shares = torch.arange(len(sample) + 1).double() / len(sample)
    said = distribution(sample)
    gap = torch.maximum((said - shares[:-1]).abs(), (said - shares[1:]).abs())
    place = int(gap.argmax())
    assert gap[place] < 2.5 / len(sample) ** 0.5, (  # by chance once in 100,000
        f"{name}: a share of {said[place]:.4f} should lie below {sample[place]:.4g}, "
        f"and {shares[place]:.4f} does"
    )


def follows_uniform(name, sample, low, high):
    follows(name, sample, lambda u: ((u - low) / (high - low)).clamp(0, 1))


def follows_normal(name, sample, deviation=1.0):
    """Its mean, its variance (in which few per cent show), and its distribution."""
    unit = torch.as_tensor(sample).detach().double().flatten() / deviation
    within_chance(f"the mean of {name}", unit.mean() * deviation, 0, deviation / len(unit) ** 0.5)
    within_chance(f"the variance of {name}", unit.var() * deviation**2, deviation**2,
                  deviation**2 * (2 / len(unit)) ** 0.5)  # fmt: skip
    follows(name, unit * deviation, lambda u: torch.special.ndtr(u / deviation))


def from_no_grid(name, sample):
    """Nearly all numbers differ, as those of float32 do."""
    count, different = sample.numel(), len(sample.unique())
    assert different > 0.95 * count, f"{name}: {different} values in {count} draws, as of a grid"


def unrelated(name, columns, to_first=False):
    """No two columns of a table [n, k] go together: correlations as small as chance makes them.

    to_first: only those with the first column are looked at.
    """
    table = torch.as_tensor(columns).detach().double()
    found = torch.corrcoef(table.T) - torch.eye(table.shape[1])
    found = found[:1] if to_first else found
    worst = found.abs().argmax().item()
    i, j = divmod(worst, table.shape[1])
    # a bound for the largest of all pairs: 5.5 deviations where there are many
    assert found.abs().max() < 5.5 / len(table) ** 0.5, (
        f"{name}: {i} and {j} go together, correlation {found[i, j]:.3f}"
    )
