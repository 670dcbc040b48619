"""Runs the authors' AutoAttack on a network given as arrays, in a Python that has PyTorch.

    python authors_auto_attack.py INPUT.npz OUTPUT.npz

It imports neither Keras nor `keras_robust`, so that PyTorch and TensorFlow may be in different
environments.
The input has images `x` (channels last) and labels `y`, `norm`, `epsilon`, and the weights
`w0, b0, ...` of a network of convolutions (stride 2, no padding) and dense layers with ReLU
between them. The output has the adversarial images `x_adv`, and a mask `robust` of shape
`(4, num_examples)` of the examples that are not fooled after each of the four attacks.
"""

import sys

import numpy as np
import torch


class Network(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = [tuple(map(torch.from_numpy, pair)) for pair in weights]
        # `torchattacks` reads the device from the parameters.
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        for number, (kernel, bias) in enumerate(self.weights):
            if kernel.ndim == 4:
                x = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2)
            else:
                if x.ndim == 4:
                    x = x.permute(0, 2, 3, 1).flatten(1)
                x = x @ kernel + bias
            if number < len(self.weights) - 1:
                x = torch.relu(x)
        return x


def main(source, target):
    data = np.load(source)
    num_layers = sum(name.startswith("w") for name in data)
    model = Network([(data[f"w{i}"], data[f"b{i}"]) for i in range(num_layers)]).eval()
    x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(data["y"]).long()
    epsilon = float(data["epsilon"])
    norm, order = {"linf": ("Linf", torch.inf), "l2": ("L2", 2), "l1": ("L1", 1)}[str(data["norm"])]
    attacks = attacks_in_l1(model, epsilon) if order == 1 else attacks_of(model, norm, epsilon)
    x_adv, robust, rows = x.clone(), model(x).argmax(1) == y, []
    for attack in attacks:
        indices = torch.nonzero(robust).flatten()
        if len(indices):
            found = attack(x[indices], y[indices])
            distance = (found - x[indices]).flatten(1).norm(p=order, dim=1)
            fooled = (model(found).argmax(1) != y[indices]) & (distance <= epsilon + 1e-5)
            x_adv[indices[fooled]] = found[fooled]
            robust[indices[fooled]] = False
        rows.append(robust.clone().numpy())
    np.savez(target, x_adv=x_adv.permute(0, 2, 3, 1).detach().numpy(), robust=np.array(rows))


def attacks_of(model, norm, epsilon):
    import torchattacks

    # The package's own `AutoAttack` runs three of the attacks with its default of 10 steps. These
    # are the authors' settings: 100 steps, 9 targets, 5000 queries, one start each. Version 3.5.1
    # still differs from the authors' code in one place: in L2, its APGDT uses the first example's
    # step size for all examples.
    common = {"eps": epsilon, "norm": norm, "n_restarts": 1, "seed": 0}
    return [
        torchattacks.APGD(model, loss="ce", steps=100, **common),
        torchattacks.APGDT(model, n_classes=10, steps=100, **common),
        torchattacks.FAB(model, multi_targeted=True, n_classes=10, steps=100, **common),
        torchattacks.Square(model, n_queries=5000, resc_schedule=False, **common),
    ]


def attacks_in_l1(model, epsilon):
    """Returns the authors' attacks with their settings, as `torchattacks` only has FAB in L1."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    common = {"eps": epsilon, "norm": "L1", "seed": 0, "device": "cpu"}
    apgd = {"n_iter": 100, "use_largereps": True, **common}
    attacks = [
        APGDAttack(model, loss="ce", n_restarts=5, **apgd),
        APGDAttack_targeted(model, n_restarts=1, n_target_classes=5, **apgd),
        FABAttack_PT(model, n_restarts=1, n_iter=100, targeted=True, n_target_classes=9, **common),
        SquareAttack(
            model, n_restarts=1, n_queries=5000, p_init=0.8, resc_schedule=False, **common
        ),
    ]
    return [attack.perturb for attack in attacks]


if __name__ == "__main__":
    # On such a small network, several threads are slower than one.
    torch.set_num_threads(1)
    main(*sys.argv[1:])
