"""What runs a layer: NumPy, ctypes and the standard library, never a compiler."""
