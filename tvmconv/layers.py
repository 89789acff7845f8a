"""The layer under the path it has in Keras: ``tvmconv.layers.Conv3DTranspose``."""

from tvmconv.runtime.layer import Conv3DTranspose

__all__ = ["Conv3DTranspose", "Convolution3DTranspose"]

Convolution3DTranspose = Conv3DTranspose
