"""A behavior policy of one's own: halfway between both models at first, then the student alone.

trb-mlx train --config small --set behavior.kind=halfway:halfway --set behavior.options.weight=0.5
"""

import trb_mlx


def halfway(config):
    """The policy of a config's `behavior` section; `options` holds what is its own."""
    weight = config.options.get("weight", 0.5)

    def blend(student, teacher, budget):
        logprobs = trb_mlx.blend_logprobs(student.logprobs, teacher.logprobs, weight)
        return trb_mlx.make_blend(student, logprobs, weight)

    return trb_mlx.Behavior(
        "halfway", needs_teacher=lambda step: step < config.warmup_steps, blend=blend
    )
