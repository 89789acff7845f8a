"""Build the small 3-D U-Net decoder that the demonstration compiles, and save it with Keras.

Writes ``decoder.keras`` and ``decoder_io.npz`` beside this file: for each Conv3DTranspose layer
its input ``<layer>/x`` and what Keras (TensorFlow on the CPU) computes from it, ``<layer>/y``.

Run with Keras 3 and TensorFlow installed::

    python examples/make_decoder.py
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

SEED = 20240607
SIZE = 8
CHANNELS = 64
HERE = Path(__file__).parent


def build() -> keras.Model:
    """Make the decoder: three upsampling steps with convolutions and skip connections between.

    Returns
    -------
    A functional model, ``(n, 8, 8, 8, 64)`` to ``(n, 64, 64, 64, 1)``.
    """
    layers = keras.layers
    bottom = keras.Input((SIZE, SIZE, SIZE, CHANNELS), name="bottom")
    skip = keras.Input((2 * SIZE, 2 * SIZE, 2 * SIZE, 8), name="skip")
    x = layers.Conv3DTranspose(32, 2, strides=2, name="up1")(bottom)
    x = layers.Concatenate(name="join")([x, skip])
    x = layers.Conv3D(16, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv3DTranspose(16, 3, strides=2, padding="same", name="up2")(x)
    x = layers.Conv3D(8, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Conv3DTranspose(8, 4, strides=2, padding="same", activation="relu", name="up3")(x)
    x = layers.Conv3D(1, 1, activation="sigmoid", name="head")(x)
    return keras.Model([bottom, skip], x, name="decoder")


def samples(model: keras.Model) -> dict[str, np.ndarray]:
    """Run the model once and keep input and output of each Conv3DTranspose layer.

    The arrays of the last layers would be too large for a repository: they get a smaller input.
    """
    rng = np.random.default_rng(SEED)
    found: dict[str, np.ndarray] = {}
    sizes = {"up1": SIZE, "up2": 6, "up3": 6}
    for name, size in sizes.items():
        layer = model.get_layer(name)
        shape = (1, size, size, size, layer.kernel.shape[-1])
        x = rng.standard_normal(shape, dtype=np.float32)
        found[f"{name}/x"] = x
        found[f"{name}/y"] = layer(x).numpy()
    return found


def main() -> None:
    """Write both files."""
    keras.utils.set_random_seed(SEED)
    model = build()
    rng = np.random.default_rng(SEED)
    for layer in model.layers:
        # Keras starts biases at zero; a bias that is lost would not be seen.
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(0.1 * rng.standard_normal(layer.bias.shape))
    model.save(HERE / "decoder.keras")
    np.savez_compressed(HERE / "decoder_io.npz", **samples(model))


if __name__ == "__main__":
    main()
