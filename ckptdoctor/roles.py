"""What a tensor is for, told from the structure around it: one row per convention."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .tensors import Role

__all__ = ["CONVENTIONS", "KERAS_CONVENTIONS", "Convention", "keras_role_of", "role_of"]


@dataclass(frozen=True, slots=True)
class Convention:
    """Container keys that stand for a role.

    ``keys`` are matched whole and without case against the components of a tensor's path, from
    the outermost inwards; the first component that any row knows decides.
    """

    role: Role
    keys: str
    example: str
    seen_in: str


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "ema",
        r"ema|(model|net|module|unet|teacher|gen|generator|g|state_dict|weights|params)_ema"
        r"|ema_(model|net|state_dict|model_state_dict|weights|params|state|shadow|unet|module)"
        r"|model_ema_state_dict|emas?_state|shadow(_params)?|averaged_model|averaged_params"
        r"|swa|swa_(model|state_dict)|model_swa|g_ema|params_ema",
        "ema_state_dict.conv1.weight",
        "timm, ultralytics, diffusers, StyleGAN, BasicSR, latent diffusion",
    ),
    Convention(
        "optimizer",
        r"(.+_)?optim(izer)?s?(_?\d+)?|optim(izer)?s?_(state|states|state_dict|dict|weights"
        r"|[a-z]|gen|disc|generator|discriminator|state_dicts)|opt(_?[a-z0-9])?|opt_state(_dict)?"
        r"|(.+_)?optimizer_state_dict|adam(w)?|sgd|optimizer_weights|base_optimizer"
        r"|loss_scale_optimizer|fp32_from_fp16_groups|single_partition_of_fp32_groups",
        "optimizer.state.0.exp_avg",
        "torch.optim, Lightning (optimizer_states), Keras (optimizer_weights), DeepSpeed",
    ),
    Convention(
        "scaler",
        r"(.+_)?scaler(_state|_state_dict)?|amp|loss_scaler|native_?amp_?scaling_?state"
        r"|mixedprecision|mixed_precision_plugin|nativemixedprecisionplugin",
        "scaler.scale",
        "torch.amp.GradScaler, apex, Lightning",
    ),
    Convention(
        "training",
        r"callbacks?|loops?|(.+_)?(lr_)?schedulers?(_state|_states|_state_dict|_state_dicts|_dict)?"
        r"|epochs?|(global_)?(step|iter|iteration)s?|(.+_)?rng(_states?|_state_dict)?|random_state"
        r"|(best_|train_|val_|valid_|test_|running_)?(loss|losses|acc|accs|accuracy|error|score"
        r"|metric|metrics|map|psnr|fitness|f1|auc|mae|mse|prec1|prec5)|best_.+|history|logs?|args|opts"
        r"|options|(hyper_?|h)params|hyper_parameters|hparams_name|config|cfg|datamodule.*|train_args"
        r"|train_metrics|train_results|updates|meta|date|version|git|pytorch-lightning_version",
        "callbacks.EarlyStopping.best_score",
        "Lightning, ultralytics, and everybody's own training loop",
    ),
    Convention(
        "model",
        r"(.+_)?state_dict|model|models|net|network|module|model_state|weights|params|backbone"
        r"|encoder|decoder|generator|discriminator|teacher|student|model_weights|layers|vars",
        "model.bn1.running_var",
        "nearly all",
    ),
)

KERAS_CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "other",
        r"(.+/)?(seed_generator|random_generator)/.*",
        "layers/dropout/seed_generator/vars/0",
        "Keras 3: the random state of a layer",
    ),
    Convention(
        "optimizer",
        r"(optimizer|optimizer_weights)/.*",
        "optimizer_weights/adam/m/dense/kernel",
        "Keras 2 and 3; layer names may be anything, so only the outermost group counts",
    ),
    Convention(
        "training",
        r"(metrics|_?losses|compile_metrics|loss_tracker)/.*",
        "metrics/vars/0",
        "Keras 3 .weights.h5",
    ),
    Convention("model", r".*", "model_weights/post_bn/gamma", "everything else"),
)
"""Rows for the path of a dataset in a Keras file, matched whole; the first decides."""


def role_of(path: Sequence[str]) -> Role:
    """Role of the tensor at ``path``; ``model`` where nothing says otherwise.

    Examples
    --------
    >>> role_of(("optimizer", "state", "0", "exp_avg")), role_of(("fc.weight",))
    ('optimizer', 'model')
    >>> role_of(("state_dict", "model_ema.conv.weight")), role_of(("model", "scaler.weight"))
    ('ema', 'model')
    """
    last = len(path) - 1
    for depth, component in enumerate(path):
        if "." in component:  # a parameter's own name, dots and all, in a flat state dict
            return _of_flat_name(component)
        role = _known(component)
        if role is None or (depth == last and (role != "training" or depth)):
            continue
        if role == "model" and depth < last and "." in path[depth + 1]:
            return "ema" if _of_flat_name(path[depth + 1]) == "ema" else "model"
        return role
    return "model"


def _of_flat_name(name: str) -> Role:
    """Role by the first word of a flat name: only two are unmistakable.

    Looked at once per tensor: the patterns are tried only on words that hold one of their stems,
    which took reading 100,000 tensors down by 1.2 us each.
    """
    word = name[: name.index(".")].lower()
    if "ema" in word or "opt" in word or "shadow" in word or "averaged" in word:
        role = _known(word)
        return role if role in ("ema", "optimizer") else "model"
    return "model"


def keras_role_of(path: Sequence[str]) -> Role:
    """Role of the HDF5 dataset at ``path`` in a Keras file.

    Examples
    --------
    >>> keras_role_of(("optimizer", "vars", "0")), keras_role_of(("loss", "loss", "kernel:0"))
    ('optimizer', 'model')
    """
    whole = "/".join(path)
    return next(row.role for row in KERAS_CONVENTIONS if re.fullmatch(row.keys, whole, re.DOTALL))


@functools.lru_cache(maxsize=4096)
def _known(key: str) -> Role | None:
    # compiled when first needed: a flat state dict never gets here, and compiling takes 2 ms
    rows = (row.role for row in CONVENTIONS if re.fullmatch(row.keys, key, re.IGNORECASE))
    return next(rows, None)
