"""The paper's own fits, for time-dependent networks: rates and step sizes by least squares.

Learnable Sampler Distillation (LSD and LSD+, arXiv:2509.19962) fits a scalar at each step of a
student to the concrete scores of a teacher. In both fits the scalar enters linearly, so they have
closed forms; the paper takes gradient steps to the same optimum.

They need scores s(x, t) that depend on t. MDLM's released checkpoints, LLaDA and Dream have none;
for those, `dlm distill schedule` learns reveal counts and logit scales instead.

Shapes: any, [..., V], the same for student and teacher.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def score_scale(student: Tensor, teacher: Tensor) -> float:
    """LSD: Phi = <s*, s> / <s, s>, which minimises || s* - Phi s ||^2.

    The student's Euler step then reveals at the rate Phi r(t); its token distribution is unchanged.

    Args:
        student: scores s at the student's states.
        teacher: scores s* at the teacher's states and the same times.

    Raises:
        ValueError: the shapes differ, or s is 0 everywhere.
    """
    return projection(student, teacher)


def step_size(student: Tensor, teacher: Tensor, teacher_step: float, weight: float = 1.0) -> float:
    """LSD+: kappa = Delta w(t) / w(tau) <p*, p> / <p, p>.

    It minimises || kappa w(tau) p - Delta w(t) p* ||^2, with s = w p and w = alpha / (1 - alpha)
    for the absorbing state. The less student and teacher agree, the shorter the step.

    Args:
        student: token distributions p at the student's states and times tau.
        teacher: token distributions p* at the teacher's states and times t.
        teacher_step: Delta, the teacher's time step for one step of the student.
        weight: w(t) / w(tau).

    Raises:
        ValueError: the shapes differ, or p is 0 everywhere.
    """
    return teacher_step * weight * projection(student, teacher)


def projection(student: Tensor, teacher: Tensor) -> float:
    """<teacher, student> / <student, student> in float64."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {list(student.shape)} and "
            f"{list(teacher.shape)}"
        )
    wide = student.double()
    norm = float(wide.square().sum())
    if norm == 0:
        raise ValueError("student must not be 0 everywhere, got a norm of 0")
    return float((wide * teacher.double()).sum()) / norm


def reveal_probability(
    alpha: Callable[[Tensor], Tensor], time: float, step: float, scale: float = 1.0
) -> float:
    """Probability q that the student's Euler step reveals a mask: min(1, Phi Delta r(t)).

    r(t) = -alpha'(t) / (1 - alpha(t)), the rate of the reverse process; 1 / t for alpha = 1 - t.

    Args:
        alpha: share of tokens that survive until t; differentiable, float64 in and out.
        time: t in (0, 1].
        step: Delta > 0.
        scale: Phi.
    """
    with torch.enable_grad():
        at = torch.tensor(time, dtype=torch.float64, requires_grad=True)
        survive = alpha(at)
        (slope,) = torch.autograd.grad(survive, at)
    rate = float(-slope / (1 - survive.detach()))
    return min(1.0, scale * step * rate)
