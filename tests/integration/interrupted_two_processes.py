"""Trains as one of two processes, and resumes after both were killed.

python interrupted_two_processes.py FOLDER LOSS ADDRESS NUMBER

If KILL_AT_STEP is set in the environment, the process kills itself at that step.
"""

import os
import pathlib
import shutil
import sys

import keras
import numpy as np
from interrupted_training import Kill
from two_processes import CASES, Half, join, make_model, own_callbacks

import keras_robust as kr

EPOCHS = 4
# The random start tests the seeds, and the optimizer's momentum is tested, too.
ATTACK = kr.attacks.PGD(epsilon=2.0, norm="l2", num_steps=2)
LOSSES = {
    "adversarial training": kr.losses.AdversarialTraining(ATTACK),
    "TRADES": kr.losses.TRADES(ATTACK),
}


def main(folder, name, address, number):
    join(address, number)
    folder, number, step = pathlib.Path(folder), int(number), int(os.environ.get("KILL_AT_STEP", 0))
    loss, make_head = CASES[name]
    loss = LOSSES.get(name, loss)
    model = make_model(loss, make_head, keras.optimizers.SGD(0.2, momentum=0.9))
    # Saving is a joint operation of all processes. All resume from the backup of the first one.
    folders = [folder / f"backup-{n}" for n in range(2)]
    if number > 0 and folders[0].exists():
        shutil.rmtree(folders[number], ignore_errors=True)
        shutil.copytree(folders[0], folders[number])
    backup = keras.callbacks.BackupAndRestore(folders[number], double_checkpoint=True)
    callbacks = [backup, *own_callbacks(loss), *([Kill(step)] if step else [])]
    history = model.fit(
        Half(number, 2), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks
    )
    values = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    np.savez(folder / f"{number}.npz", *values, num_epochs=len(history.epoch))


if __name__ == "__main__":
    main(*sys.argv[1:])
