"""What runs a teacher over an hour's rows."""

from keras_exfm.das.engines.engine import (
    ConnectedEngine,
    Engine,
    PartitionEngine,
    Scored,
    make_engines,
)

__all__ = ["ConnectedEngine", "Engine", "PartitionEngine", "Scored", "make_engines"]
