"""CTR backbones over a collection of compressed tables: dense (B, K) and sparse features in, logits (B,) out."""

from recemb.models.autoint import AutoIntConfig
from recemb.models.base import ModelConfig
from recemb.models.dcn_v2 import DCNv2Config
from recemb.models.deepfm import DeepFMConfig
from recemb.models.dlrm import DLRMConfig
from recemb.models.fnn import FNNConfig
from recemb.models.ipnn import IPNNConfig
from recemb.models.wide_deep import WideDeepConfig

MODELS: dict[str, type[ModelConfig]] = {
    config.name: config
    for config in (DLRMConfig, DCNv2Config, DeepFMConfig, WideDeepConfig, FNNConfig, IPNNConfig, AutoIntConfig)
}
"""Every backbone by the name it has on the command line; a new one is one file and one entry here."""

__all__ = [
    "MODELS",
    "AutoIntConfig",
    "DCNv2Config",
    "DLRMConfig",
    "DeepFMConfig",
    "FNNConfig",
    "IPNNConfig",
    "ModelConfig",
    "WideDeepConfig",
]
