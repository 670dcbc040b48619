"""Adversarial attacks: `attack(model, x, y, seed=None) -> x_adv`."""

from keras_robust.attacks.apgd import APGD as APGD
from keras_robust.attacks.attack import Attack as Attack
from keras_robust.attacks.auto_attack import AutoAttack as AutoAttack
from keras_robust.attacks.bpda import BPDA as BPDA
from keras_robust.attacks.carlini_wagner import CarliniWagnerL2 as CarliniWagnerL2
from keras_robust.attacks.deepfool import DeepFool as DeepFool
from keras_robust.attacks.ensemble import Ensemble as Ensemble
from keras_robust.attacks.fab import FAB as FAB
from keras_robust.attacks.fgsm import FGSM as FGSM
from keras_robust.attacks.gaussian_noise import GaussianNoise as GaussianNoise
from keras_robust.attacks.hop_skip_jump import HopSkipJump as HopSkipJump
from keras_robust.attacks.ifgsm import IFGSM as IFGSM
from keras_robust.attacks.mim import MIM as MIM
from keras_robust.attacks.multi_targeted import MultiTargeted as MultiTargeted
from keras_robust.attacks.pgd import PGD as PGD
from keras_robust.attacks.result import AttackResult as AttackResult
from keras_robust.attacks.result import RoundResult as RoundResult
from keras_robust.attacks.square import Square as Square
from keras_robust.attacks.wnll_surrogate import WNLLSurrogate as WNLLSurrogate
