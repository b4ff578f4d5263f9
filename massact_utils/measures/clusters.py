"""Clusters: the tokens of many images parted in two at once, by torch, on the device where the tokens are.

Every function takes tokens x (G, N, K) float32, centred over the N tokens of each of G groups (an image at a site), and
`scale` (G, K, 1), by which each of the K channels counts: the result is that of x * scale, which is not written to
memory. No group sees another. scikit-learn, scikit-image and scipy are the oracles of the tests.
"""

import torch

EXACT = 256  # up to this many tokens or channels a principal axis comes from an eigendecomposition
LARGE = 2**18  # values of a group above which a quarter of its tokens finds the start for all


def two_means(x, scale, scores=None) -> torch.Tensor:
    """K-means with two clusters: side (G, N) bool, all False where all tokens are alike.

    Lloyd's iterations start from the sign of the first principal component (`scores`, where known), which solves the
    relaxed problem (Ding and He 2004). They end when no more than one token in a thousand changes its side. Nothing is
    drawn, so there is no seed.
    """
    side = (first_component(x, scale) if scores is None else scores) > 0
    if x[0].numel() > LARGE:
        part = x[:, ::4].contiguous()
        side = _nearer(x, scale, *_centres(part, _settled(part, scale, side[:, ::4])))
    return _settled(x, scale, side)


def first_component(x, scale) -> torch.Tensor:
    """Scores of the tokens on their first principal component: (G, N), the largest loading positive."""
    if min(x.shape[1:]) > EXACT:
        axis = _leading_axis(x, scale)
    else:
        z = x * scale.mT
        wide = x.shape[2] > x.shape[1]
        axis = torch.linalg.eigh(z @ z.mT if wide else z.mT @ z).eigenvectors[..., -1:]
        axis = torch.nn.functional.normalize(z.mT @ axis, dim=1) if wide else axis  # G K 1
    sign = axis.gather(1, axis.abs().argmax(1, keepdim=True)).sign()
    return (x @ (axis * sign * scale))[..., 0]


def from_border(x, scale, border) -> torch.Tensor:
    """Mean distance of each token to the three most similar tokens of the border (N,) bool, itself left out: (G, N)."""
    at, z = border.nonzero()[:, 0], x * scale.mT
    square = torch.linalg.vector_norm(z, dim=2, keepdim=True).square()
    distance = torch.baddbmm(square[:, at].mT, z, z[:, at].mT, alpha=-2).add_(square)  # G N B
    distance[:, at, torch.arange(len(at), device=x.device)] = torch.inf
    return distance.topk(min(3, len(at) - 1), largest=False).values.clamp_min(0).sqrt().mean(-1)


def otsu(heat, bins: int = 256) -> torch.Tensor:
    """Otsu's threshold for each group: heat (G, N) -> (G, N) bool, all False where it is constant."""
    low, high = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    at = ((heat - low) / (high - low).clamp_min(1e-30) * bins).long().clamp_max(bins - 1)
    count = torch.zeros(len(heat), bins, device=heat.device).scatter_add_(1, at, torch.ones_like(heat))
    below, mass = count.cumsum(1), (count * torch.arange(bins, device=heat.device)).cumsum(1)
    rest, left = below[:, -1:] - below, mass[:, -1:] - mass
    between = below * rest * (mass / below.clamp_min(1) - left / rest.clamp_min(1)).square()
    return at > between[:, :-1].argmax(1, keepdim=True)


def _leading_axis(x, scale) -> torch.Tensor:
    """The first principal axis (G, K, 1) by subspace iterations on a quarter of the tokens, then on all of them.

    `torch.pca_lowrank` takes 13 to 50 times as long for the same accuracy: it orthogonalises the tokens' side as well.
    """
    axes = torch.randn(x.shape[2], 6, generator=torch.Generator().manual_seed(0)).to(x).expand(len(x), -1, -1)
    for part, rounds in ((x[:, ::4].contiguous(), 8), (x, 3)):
        for _ in range(rounds):
            scores = part @ (axes * scale)  # G N 6
            axes = torch.linalg.qr((scores.mT @ part).mT * scale).Q
    scores = x @ (axes * scale)
    return axes @ torch.linalg.eigh(scores.mT @ scores).eigenvectors[..., -1:]


def _settled(x, scale, side) -> torch.Tensor:
    done = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
    for _ in range(300):  # scikit-learn's limit, too
        before, side = side, torch.where(done, side, _nearer(x, scale, *_centres(x, side)))
        done = (before != side).sum(1, keepdim=True) <= x.shape[1] // 1000
        if done.all():
            break
    return side


def _centres(x, side) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the two sides: (G, 1, K) each."""
    inside = side.to(x)[:, None]  # G 1 N
    n, held = inside.sum(2, keepdim=True), inside @ x  # the other side's sum is the opposite, since x is centred
    return held / n.clamp_min(1), -held / (x.shape[1] - n).clamp_min(1)


def _nearer(x, scale, first, second) -> torch.Tensor:
    """Tokens that lie nearer to the first centre: (G, N) bool."""
    apart = (first - second).mT * scale.square()  # G K 1
    return (x @ apart)[..., 0] > ((first + second) / 2 @ apart)[..., 0]
