"""Reusable layers: embedding of features, and interactions of embeddings."""

from keras_exfm.layers.dot_interaction import DotInteraction
from keras_exfm.layers.factorization_machine_block import FactorizationMachineBlock
from keras_exfm.layers.feature_embedding import FeatureEmbedding
from keras_exfm.layers.linear_compression_block import LinearCompressionBlock
from keras_exfm.layers.wukong_layer import WukongLayer

__all__ = [
    "DotInteraction",
    "FactorizationMachineBlock",
    "FeatureEmbedding",
    "LinearCompressionBlock",
    "WukongLayer",
]
