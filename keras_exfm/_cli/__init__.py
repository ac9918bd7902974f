"""The parts of the `keras-exfm` command."""
