"""A model of how long calls take on a GPU that nobody has at hand: a prediction.

`launches` lists what a kind of call launches, with bytes and instructions; `predict` says how long each takes, and what
bounds it.
"""

from mcelbo_kernels.cuda.model.calls import launches
from mcelbo_kernels.cuda.model.gpu import A100, H100, H200, Gpu, Launch, Occupancy, Prediction, occupancy, predict

__all__ = ["A100", "H100", "H200", "Gpu", "Launch", "Occupancy", "Prediction", "launches", "occupancy", "predict"]
