"""Reusable layers: embedding of features, and interactions of embeddings."""

from keras_exfm.layers.auxiliary_head import AuxiliaryHead
from keras_exfm.layers.bilinear_fusion import BilinearFusion
from keras_exfm.layers.compressed_interaction_network import CompressedInteractionNetwork
from keras_exfm.layers.cross_layer import CrossLayer
from keras_exfm.layers.dot_interaction import DotInteraction
from keras_exfm.layers.dynamic_ids import DynamicIds
from keras_exfm.layers.embedding_table import EmbeddingTable
from keras_exfm.layers.factorization_machine import FactorizationMachine
from keras_exfm.layers.factorization_machine_block import FactorizationMachineBlock
from keras_exfm.layers.feature_embedding import FeatureEmbedding
from keras_exfm.layers.feature_selection import FeatureSelection
from keras_exfm.layers.fieldwise_layer_normalization import FieldwiseLayerNormalization
from keras_exfm.layers.first_order import FirstOrder
from keras_exfm.layers.interacting_attention import InteractingAttention
from keras_exfm.layers.linear_compression_block import LinearCompressionBlock
from keras_exfm.layers.logarithmic_transformation import LogarithmicTransformation
from keras_exfm.layers.mask_block import MaskBlock
from keras_exfm.layers.representation_head import RepresentationHead
from keras_exfm.layers.student_adapter import StudentAdapter
from keras_exfm.layers.teacher_gate import TeacherGate
from keras_exfm.layers.wukong_layer import WukongLayer

__all__ = [
    "AuxiliaryHead",
    "BilinearFusion",
    "CompressedInteractionNetwork",
    "CrossLayer",
    "DotInteraction",
    "DynamicIds",
    "EmbeddingTable",
    "FactorizationMachine",
    "FactorizationMachineBlock",
    "FeatureEmbedding",
    "FeatureSelection",
    "FieldwiseLayerNormalization",
    "FirstOrder",
    "InteractingAttention",
    "LinearCompressionBlock",
    "LogarithmicTransformation",
    "MaskBlock",
    "RepresentationHead",
    "StudentAdapter",
    "TeacherGate",
    "WukongLayer",
]
