"""How the error at a block's exit reaches the block's layers: what the rules that are rivals of BLL differ in.

All train the same modules, whose exit (readout and class table) always learns by its true gradient. Between the
exit and the layers there is backpropagation, or what a rule puts in its place:

    feedback_alignment         the layers' linear maps send errors back through fixed random weights
    sign_symmetry              ... through the signs of their own
    direct_feedback_alignment  each layer gets the exit's error through a fixed random matrix of its own
    target_propagation         each layer gets a target that learned inverses bring down from the last layer's
    synthetic_gradients        each layer gets what a small network takes its gradient to be
"""

from __future__ import annotations

from torch import nn

from bll.choices import Rule
from bll.credit.base import Credit
from bll.credit.direct import DirectFeedback
from bll.credit.feedback import RandomFeedback, SignFeedback, replace_maps
from bll.credit.synthetic import SyntheticGradients
from bll.credit.targets import TargetPropagation

__all__ = ["Credit", "make_credit"]


def make_credit(rule: Rule, layers: nn.Sequential, input_shape: tuple[int, ...], num_classes: int) -> Credit:
    """The credit assignment of `rule` to `layers`, which take samples of `input_shape`.

    Under `feedback_alignment` and `sign_symmetry` it changes `layers`: what is linear in them is wrapped. Raises
    InvalidConfig if something in them cannot be. Draws from torch's global generator.
    """
    match rule:
        case Rule.FEEDBACK_ALIGNMENT:
            replace_maps(layers, RandomFeedback, rule)
        case Rule.SIGN_SYMMETRY:
            replace_maps(layers, SignFeedback, rule)
        case Rule.DIRECT_FEEDBACK_ALIGNMENT:
            return DirectFeedback(layers, input_shape, num_classes)
        case Rule.TARGET_PROPAGATION:
            return TargetPropagation(layers, input_shape)
        case Rule.SYNTHETIC_GRADIENTS:
            return SyntheticGradients(layers, input_shape, num_classes)
    return Credit()
