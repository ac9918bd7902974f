"""Tables on several devices and hosts."""

from keras_exfm.distribution.row_sharded_layout import row_sharded_layout

__all__ = ["row_sharded_layout"]
