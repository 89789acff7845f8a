"""Weights and configs of Conv3DTranspose layers, read from files that may come from strangers.

Nothing named in a file is imported, run or opened; nothing is written; sizes are checked before
memory is taken. Neither Keras nor TensorFlow is needed: h5py for the HDF5 formats, numpy for all.

The layers of the module: ``formats`` tells what a file is; ``archive``, ``hdf5``, ``dataset``,
``tensors`` and ``json_text`` read bytes safely; ``tree`` finds layers in a model's config;
``variables``, ``legacy`` and ``sharded`` find a layer's arrays; ``model`` brings both together.
"""

from tvmconv.weights.config_json import read_config_json
from tvmconv.weights.listing import inspect
from tvmconv.weights.live import from_keras
from tvmconv.weights.matching import find_weights
from tvmconv.weights.model import LayerEntry, ModelFile, read, select

__all__ = [
    "LayerEntry",
    "ModelFile",
    "find_weights",
    "from_keras",
    "inspect",
    "read",
    "read_config_json",
    "select",
]
