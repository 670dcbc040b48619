"""Installs each distribution in a clean environment, and trains and attacks a model there.

python scripts/try_distributions.py dist
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

TRIAL = """
import keras, keras_robust as kr
train = kr.datasets.load("fashion_mnist_subset", "train").take(256).batch(64)
test = kr.datasets.load("fashion_mnist_subset", "test").take(20)
model = kr.RobustModel(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]))
attack = kr.attacks.PGD(epsilon=0.1, num_steps=3)
model.compile("adam", kr.losses.AdversarialTraining(attack), metrics=["accuracy"])
model.fit(train, epochs=1, verbose=0)
kr.evaluate(model, test, attacks=attack, checks=False, verbose=0).summary()
print("keras_robust", kr.__version__, kr.__file__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="folder of the distributions")
    folder = parser.parse_args().folder
    found = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    if len(found) != 2:
        parser.error(f"expected a wheel and a source distribution. Received: {found}")
    for distribution in found:
        with tempfile.TemporaryDirectory() as name:
            subprocess.run([sys.executable, "-m", "venv", name], check=True)
            python = pathlib.Path(name, "bin", "python")
            requirement = f"keras-robust[jax] @ {distribution.resolve().as_uri()}"
            subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
            print(f"\n{distribution.name}", flush=True)
            environment = {"KERAS_BACKEND": "jax", "PATH": "/usr/bin:/bin", "HOME": name}
            subprocess.run([python, "-c", TRIAL], check=True, cwd=name, env=environment)
            command = python.with_name("keras-robust")
            subprocess.run(
                [command, "--help"], check=True, env=environment, stdout=subprocess.DEVNULL
            )


if __name__ == "__main__":
    main()
