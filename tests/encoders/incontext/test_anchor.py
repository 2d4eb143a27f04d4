"""The closed form against a slow enumeration of its mixture, in float64 and from the formulas."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from neuroenc.encoders.incontext import PriorMixture, make_model
from neuroenc.encoders.incontext._anchor import _NOISE, _SIGNAL, ClosedFormAnchor

torch.set_num_threads(1)
E, N, K, DIM = 5, 12, 2, 16


def built(seed=0, stir=0.3, e=E, components=K):
    """An anchor with priors of its own, and a head that speaks."""
    torch.manual_seed(seed)
    anchor = ClosedFormAnchor(e, DIM, components)
    a = torch.randn(components, e, e)
    covs = a @ a.mT / 10 + 0.05 * torch.eye(e)
    anchor.set_prior(torch.randn(components, e) / 3, covs, torch.randn(components), torch.randn(e) / 5)
    torch.nn.init.normal_(anchor.out.weight, std=stir)
    return anchor.eval()


def data(seed=0, voxels=3, n=N, e=E, own=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(voxels if own else 1, n, e, generator=generator) + 0.3
    w = 0.4 * torch.randn(voxels, e, generator=generator)
    y = torch.einsum("vne,ve->vn", x.expand(voxels, n, e), w) + 0.2
    y = y + 0.5 * torch.randn(voxels, n, generator=generator)
    return torch.randn(voxels, DIM, generator=generator), x if own else x[0], y


def said(anchor, *inputs):
    """What the head says, cut into its parts."""
    kept = []
    handle = anchor.out.register_forward_hook(lambda module, given, out: kept.append(out.detach().double()))
    with torch.no_grad():
        anchor(*inputs)
    handle.remove()
    return [part.numpy() for part in kept[0].split([len(anchor.component), 9, 12, anchor.root.shape[-1]], dim=1)]


def enumerated(anchor, inputs, v):
    """Mean and covariance of (weights, intercept), and noise variance, of one voxel: every component, every variance.

    Observation form (n x n), where the anchor works on weights (e x e).
    """
    _, x, y = inputs
    pick, signal, noise, shift = (part[v] for part in said(anchor, *inputs))
    center = anchor.center.double().numpy()
    x = (x if x.ndim == 2 else x[v]).double().numpy() - center
    x, y = np.column_stack([x, np.ones(len(x))]), y[v].double().numpy()
    moved = anchor.root.double().numpy() @ np.tanh(shift)
    logs, means, covs, levels = [], [], [], []
    for k in range(len(anchor.component)):
        root = anchor.roots[k].double().numpy()
        prior, mu = root @ root.T, anchor.means[k].double().numpy()
        for i, s in enumerate(_SIGNAL.numpy()):
            for j, t in enumerate(_NOISE.numpy()):
                start = moved + np.sqrt(s) * mu
                spread = s * x @ prior @ x.T + t * np.eye(len(x))
                learned = anchor.component[k].item() + anchor.level[i, j].item() + pick[k] + signal[i] + noise[j]
                logs.append(multivariate_normal.logpdf(y, x @ start, spread) + learned)
                gain = s * prior @ x.T @ np.linalg.inv(spread)
                means.append(start + gain @ (y - x @ start))
                covs.append(s * prior - gain @ x @ (s * prior))
                levels.append(t)
    p = np.exp(np.array(logs) - max(logs))
    p /= p.sum()
    means = np.array(means)
    mean = p @ means
    second = np.einsum("g,gij->ij", p, np.array(covs)) + np.einsum("g,gi,gj->ij", p, means, means)
    turn = np.eye(len(mean))
    turn[-1, :-1] = -center  # To features that are not centred.
    return turn @ mean, turn @ (second - np.outer(mean, mean)) @ turn.T, p @ np.array(levels)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_enumeration(seed, own):
    anchor, inputs = built(seed), data(seed, own=own)
    with torch.no_grad():
        coef, intercept, noise, covariance = anchor(*inputs, covariance=True)
    for v in range(len(coef)):
        mean, cov, level = enumerated(anchor, inputs, v)
        np.testing.assert_allclose(np.append(coef[v], intercept[v]), mean, atol=2e-6)
        np.testing.assert_allclose(noise[v], level, rtol=1e-5)
        np.testing.assert_allclose(covariance[v], cov, atol=2e-6)
        assert np.linalg.eigvalsh(covariance[v].double()).min() > -1e-7


def test_shared_own_masked_and_weighted_supports_agree():
    anchor, (z, x, y) = built(), data()
    with torch.no_grad():
        shared = anchor(z, x, y, covariance=True)
        own = anchor(z, x.expand(3, -1, -1), y, covariance=True)
        zero = anchor(z, x, y, torch.zeros(N), covariance=True)
        # Three more trials of weight 0 say nothing, whatever they hold.
        more = torch.cat([x, 9 * torch.ones(3, E)]), torch.cat([y, 7 * torch.ones(3, 3)], dim=1)
        masked = anchor(z, *more, torch.tensor([0.0] * N + [-torch.inf] * 3).expand(3, -1), covariance=True)
        for other in (own, zero, masked):
            for a, b in zip(shared, other):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_weighted_is_duplicated():
    anchor, (z, x, y) = built(), data()
    times = torch.tensor([3, 1, 2] + [1] * (N - 3))
    again = torch.repeat_interleave(torch.arange(N), times)
    with torch.no_grad():
        for a, b in zip(anchor(z, x, y, times.log()), anchor(z, x[again], y[:, again])):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_voxels_do_not_see_each_other():
    anchor, (z, x, y) = built(), data(voxels=7)
    with torch.no_grad():
        whole = anchor(z, x, y)[0]
        torch.testing.assert_close(torch.cat([anchor(z[v : v + 1], x, y[v : v + 1])[0] for v in range(7)]), whole)


@pytest.mark.parametrize("own", [False, True])
def test_gradients(own):
    anchor, (z, x, y) = built(e=3), data(voxels=2, n=6, e=3, own=own)
    names = ["component", "level", "out.bias", "mix.weight", "norm.weight"]
    parameters = [dict(anchor.named_parameters())[name] for name in names]

    def loss():
        coef, intercept, noise, _ = anchor(z, x, y)
        return coef.double().square().sum() + intercept.double().square().sum() + noise.double().log().sum()

    z.requires_grad_(True)
    found = torch.autograd.grad(loss(), [z, *parameters])
    for p, grad in zip([z, *parameters], found):
        assert torch.isfinite(grad).all()
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        step = 1e-2
        with torch.no_grad():
            p.add_(step * direction)
            up = loss()
            p.sub_(2 * step * direction)
            down = loss()
            p.add_(step * direction)
        slope = float((up - down) / (2 * step))
        assert abs(slope - float((grad * direction).sum())) < 1e-2 * abs(slope) + 2e-3


@pytest.mark.parametrize("own", [False, True])
def test_gradcheck_of_the_evidence(own):
    # In float64 throughout: from the correction of the prior's mean to the scores of components and variances.
    anchor, (_, x, y) = built(e=3), data(voxels=2, n=6, e=3, own=own)
    support = anchor.moments(x, y)
    spectra = [anchor._spectrum(root.double(), support) for root in anchor.roots]
    moved = 0.1 * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def scores(moved):
        cross = support.cross - (support.gram @ moved[..., None])[..., 0]
        power = support.power - ((support.cross + cross) * moved).sum(1)
        return anchor._scores(spectra, support, cross, power)[:, :, ::4, ::4]

    assert torch.autograd.gradcheck(scores, moved.requires_grad_(True), atol=1e-4)


def test_many_trials_lead_to_least_squares():
    anchor = built(stir=1.0)
    z, x, y = data(n=20000)
    with torch.no_grad():
        coef, intercept, noise, covariance = anchor(z, x, y, covariance=True)
    wide = np.column_stack([x, np.ones(len(x))])
    fit, rest, *_ = np.linalg.lstsq(wide, y.T.numpy(), rcond=None)
    np.testing.assert_allclose(np.column_stack([coef, intercept]), fit.T, atol=2e-3)
    # To the grid's nearest value.
    assert np.all(np.abs(np.log(noise.numpy() / (rest / len(x)))) < 0.25)
    assert covariance.abs().max() < 1e-3


def test_before_training_the_register_says_nothing():
    anchor = built(stir=0.0)
    assert torch.equal(anchor.out.bias, torch.zeros_like(anchor.out.bias))
    z, x, y = data()
    with torch.no_grad():
        a, b = anchor(z, x, y)[0], anchor(5 - z, x, y)[0]
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n", [10, 60])
def test_covariance_is_calibrated_on_voxels_of_the_prior(n):
    rng = np.random.default_rng(n)
    e, voxels = 8, 3000
    root = rng.standard_normal((e, e))
    mixture = PriorMixture.build(rng.standard_normal((2000, e)), [root @ root.T + 0.1 * np.eye(e)])
    anchor = make_model("small", prior=mixture, dim=16, depth=1, hidden=16, heads=2).eval().anchor
    cov = (anchor.roots[0] @ anchor.roots[0].T).double().numpy()
    # Signal and noise as the anchor's own prior has them.
    level = anchor.level.detach().double().numpy()
    picked = rng.choice(level.size, voxels, p=np.exp(level).ravel() / np.exp(level).sum())
    signal, noise = _SIGNAL.numpy()[picked // level.shape[1]], _NOISE.numpy()[picked % level.shape[1]]
    weights = rng.multivariate_normal(np.zeros(e + 1), cov, size=voxels) * np.sqrt(signal)[:, None]
    x, q = rng.standard_normal((n, e)), rng.standard_normal((1, e))
    # The prior is of weights around the images' mean.
    weights[:, -1] -= weights[:, :-1] @ mixture.center
    y = weights[:, :-1] @ x.T + weights[:, -1:] + np.sqrt(noise)[:, None] * rng.standard_normal((voxels, n))
    new = weights[:, :-1] @ q.T + weights[:, -1:] + np.sqrt(noise)[:, None] * rng.standard_normal((voxels, 1))
    with torch.no_grad():
        coef, intercept, rest, covariance = anchor(
            torch.zeros(voxels, 16), torch.tensor(x).float(), torch.tensor(y).float(), covariance=True
        )
    wide = np.append(q[0], 1.0)
    spread = np.sqrt(np.einsum("i,vij,j->v", wide, covariance.numpy(), wide) + rest.numpy())
    off = (new[:, 0] - (coef.numpy() @ q[0] + intercept.numpy())) / spread
    # Three standard errors and what a mixture of Gaussians is not Gaussian.
    assert abs(np.mean(off**2) - 1) < 0.1
    for share, z in ((0.5, 0.6745), (0.9, 1.6449)):
        assert abs((np.abs(off) < z).mean() - share) < 0.04
