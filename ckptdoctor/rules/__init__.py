"""Rules: one per module; a new one is its file and a line here."""

from __future__ import annotations

from .base import Rule
from .bn001_nonfinite_running_stats import NonfiniteRunningStats
from .bn002_negative_running_var import NegativeRunningVar
from .bn003_exploded_running_var import ExplodedRunningVar
from .bn004_collapsed_running_var import CollapsedRunningVar
from .bn005_dead_gammas import DeadGammas
from .bn006_stale_running_stats import StaleRunningStats
from .bn007_missing_running_stats import MissingRunningStats
from .bn008_half_precision_running_stats import HalfPrecisionRunningStats
from .bn009_duplicated_running_stats import DuplicatedRunningStats
from .bn010_exploded_gain import ExplodedGain
from .cf001_pool_stride_beyond_kernel import PoolStrideBeyondKernel
from .cf002_epsilon_below_resolution import LayerEpsilonBelowResolution
from .cf003_momentum_never_updates import MomentumNeverUpdates
from .cf004_class_count_mismatch import ClassCountMismatch
from .nf001_nan_values import NanValues
from .nf002_inf_values import InfValues
from .nf003_masked_infinities import MaskedInfinities
from .pr001_overflows_in_dtype import OverflowsInDtype
from .pr002_underflows_in_dtype import UnderflowsInDtype
from .pr003_saturated_values import SaturatedValues
from .ts001_nonfinite_optimizer_state import NonfiniteOptimizerState
from .ts002_negative_second_moment import NegativeSecondMoment
from .ts003_extreme_learning_rate import ExtremeLearningRate
from .ts004_epsilon_below_resolution import EpsilonBelowResolution
from .ts005_collapsed_loss_scale import CollapsedLossScale
from .ts006_diverged_ema_copy import DivergedEmaCopy
from .ts007_optimizer_model_mismatch import OptimizerModelMismatch
from .ts008_gradient_depth_profile import GradientDepthProfile
from .ts009_nonfinite_loop_state import NonfiniteLoopState
from .wt001_all_zero_weights import AllZeroWeights
from .wt002_constant_weights import ConstantWeights
from .wt003_exploded_weights import ExplodedWeights
from .wt004_outlier_spike import OutlierSpike
from .wt005_duplicated_units import DuplicatedUnits
from .wt006_vanished_layer import VanishedLayer
from .wt007_zero_norm_direction import ZeroNormDirection
from .wt008_untrained_layer import UntrainedLayer
from .wt009_empty_weights import EmptyWeights
from .wt010_uninitialised_memory import UninitialisedMemory
from .wt011_zero_or_nonfinite_scale import ZeroOrNonfiniteScale

__all__ = ["RULES", "Rule"]

RULES: tuple[type[Rule], ...] = (
    NonfiniteRunningStats,
    NegativeRunningVar,
    ExplodedRunningVar,
    CollapsedRunningVar,
    DeadGammas,
    StaleRunningStats,
    MissingRunningStats,
    HalfPrecisionRunningStats,
    DuplicatedRunningStats,
    ExplodedGain,
    PoolStrideBeyondKernel,
    LayerEpsilonBelowResolution,
    MomentumNeverUpdates,
    ClassCountMismatch,
    NanValues,
    InfValues,
    MaskedInfinities,
    OverflowsInDtype,
    UnderflowsInDtype,
    SaturatedValues,
    NonfiniteOptimizerState,
    NegativeSecondMoment,
    ExtremeLearningRate,
    EpsilonBelowResolution,
    CollapsedLossScale,
    DivergedEmaCopy,
    OptimizerModelMismatch,
    GradientDepthProfile,
    NonfiniteLoopState,
    AllZeroWeights,
    ConstantWeights,
    ExplodedWeights,
    OutlierSpike,
    DuplicatedUnits,
    VanishedLayer,
    ZeroNormDirection,
    UntrainedLayer,
    EmptyWeights,
    UninitialisedMemory,
    ZeroOrNonfiniteScale,
)
"""Every rule in code order."""
