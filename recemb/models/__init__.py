"""CTR backbones over a collection of compressed tables: dense (B, K) and sparse features in, logits (B,) out."""

from recemb.models.base import ModelConfig
from recemb.models.dcn_v2 import DCNv2Config
from recemb.models.dlrm import DLRMConfig

MODELS: dict[str, type[ModelConfig]] = {config.name: config for config in (DLRMConfig, DCNv2Config)}
"""Every backbone by the name it has on the command line; a new one is one file and one entry here."""

__all__ = ["MODELS", "DCNv2Config", "DLRMConfig", "ModelConfig"]
