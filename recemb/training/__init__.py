"""Training: the loop, its optimizers and metrics, and the record that every run leaves."""

from recemb.training.run import train
from recemb.training.trainer_config import TrainerConfig

__all__ = ["TrainerConfig", "train"]
