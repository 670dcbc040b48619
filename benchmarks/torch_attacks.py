"""Times torchattacks on a ResNet-20 with given weights, in a Python that has PyTorch.

    python benchmarks/torch_attacks.py FOLDER

`attacks.py` runs this script. It imports neither Keras nor `keras_robust`, so that PyTorch and JAX
may be in different environments. `FOLDER/input.npz` has the images `x` (channels last), the labels
`y`, the `logits` of the Keras network, and its weights `w0`, `w1`, ... in the order of creation.
`FOLDER/attacks.json` has the arguments and the number of repeats of each attack. The script stops
if the logits of the two networks differ. Otherwise it writes the images of each attack and the
duration of each call to `FOLDER/NAME.npz`, and prints the attack's name. It runs on a GPU if there
is one.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative to the largest logit. On a GPU both networks use TF32, and 20 layers add its errors up.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}[DEVICE]


def convolution(weights: Any, stride: int) -> nn.Module:
    """Returns a convolution with Keras's "same" padding, and its batch norm."""
    kernel = next(weights).permute(3, 2, 0, 1)
    outputs, inputs, size, _ = kernel.shape
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    padding = nn.Identity()
    if stride == 2 and size == 3:  # For even sizes, "same" pads after the image only.
        layer.padding, padding = (0, 0), nn.ZeroPad2d((0, 1, 0, 1))
    norm = nn.BatchNorm2d(outputs, eps=1e-3)  # Keras's epsilon.
    layer.weight.data = kernel.contiguous()
    norm.weight.data, norm.bias.data = next(weights), next(weights)
    norm.running_mean, norm.running_var = next(weights), next(weights)
    return nn.Sequential(padding, layer, norm)


class Block(nn.Module):
    def __init__(self, weights: Any, stride: int, is_wider: bool) -> None:
        super().__init__()
        self.shortcut = convolution(weights, stride) if is_wider else nn.Identity()
        self.first, self.second = convolution(weights, stride), convolution(weights, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first(x))
        return torch.relu(self.shortcut(x) + self.second(inner))


class ResNet20(nn.Module):
    """The network of `models.resnet20`."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        super().__init__()
        weights = iter([torch.from_numpy(array) for array in arrays])
        blocks = [convolution(weights, 1), nn.ReLU()]
        for stride in (1, 2, 2):
            blocks += [Block(weights, s, is_wider=s == 2) for s in (stride, 1, 1)]
        self.features = nn.Sequential(*blocks)
        kernel, bias = weights
        self.logits = nn.Linear(*kernel.shape)
        self.logits.weight.data, self.logits.bias.data = kernel.T.contiguous(), bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(self.features(x).mean((2, 3)))


def make_attack(model: nn.Module, name: str, a: dict[str, Any]) -> torchattacks.attack.Attack:
    """Returns the attack with the settings of ours."""
    epsilon = a["epsilon"]
    if name == "fgsm":
        return torchattacks.FGSM(model, epsilon)
    if name == "pgd-40":
        return torchattacks.PGD(model, epsilon, a["step_size"], a["num_steps"], random_start=True)
    if name == "square":
        return torchattacks.Square(model, eps=epsilon, n_queries=a["num_queries"])
    return torchattacks.APGD(model, eps=epsilon, steps=a["num_steps"], loss=a["loss"])


def timed(function: Any, repeats: int, slow_seconds: float) -> tuple[torch.Tensor, list[float]]:
    """Returns the result and the duration of each call. A slow first call is not repeated."""
    seconds: list[float] = []
    while len(seconds) <= repeats and not (seconds and seconds[0] > slow_seconds):
        start = time.perf_counter()
        result = function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def main(folder: pathlib.Path) -> None:
    data = np.load(folder / "input.npz")
    num_weights = sum(name.startswith("w") for name in data)
    model = ResNet20([data[f"w{i}"] for i in range(num_weights)]).eval().to(DEVICE)
    y = torch.from_numpy(data["y"]).long().to(DEVICE)

    def images() -> torch.Tensor:
        """Copies the NumPy images to the device, which our timed calls do, too."""
        return torch.from_numpy(data_x).permute(0, 3, 1, 2).contiguous().to(DEVICE)

    data_x = data["x"]
    with torch.no_grad():
        logits = model(images()).cpu().numpy()
    error = abs(logits - data["logits"]).max() / abs(data["logits"]).max()
    if not error <= TOLERANCE:
        sys.exit(f"The PyTorch network is not the Keras network: its logits differ by {error:.1%}.")
    settings = json.loads((folder / "attacks.json").read_text())
    for name, arguments in settings["attacks"].items():
        attack = make_attack(model, name, arguments)
        x_adv, seconds = timed(
            lambda attack=attack: attack(images(), y), settings["repeats"], settings["slow_seconds"]
        )
        x_adv = x_adv.detach().permute(0, 2, 3, 1).cpu().numpy()
        np.savez(folder / f"{name}.npz", x_adv=x_adv, seconds=seconds)
        print(name, flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
