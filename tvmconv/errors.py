"""The exceptions of tvmconv, each also the builtin that Keras raises for the same mistake.

::

    TvmconvError(Exception)
      ConfigError(ValueError)          a layer argument is wrong; Keras' wording
        ConfigTypeError(TypeError)     where Keras raises a TypeError
      TargetError(ValueError)          a target is unknown or unusable; names what was found
      WeightsError(ValueError)         a file or an array does not hold the weights expected
      InputError(ValueError)           an input array does not fit the layer
      ScheduleError(RuntimeError)      a tiling cannot be computed: one from
                                       elsewhere, or a rule's (a bug)
      BuildError(RuntimeError)         TVM, the compiler or the linker failed
      ArtifactError(RuntimeError)      an artifact is missing, damaged or of another version
      TuningError(RuntimeError)        a tuning run cannot go on
      DeviceError(RuntimeError)        another machine cannot be reached, or fails
"""

__all__ = [
    "ArtifactError",
    "BuildError",
    "ConfigError",
    "ConfigTypeError",
    "DeviceError",
    "InputError",
    "ScheduleError",
    "TargetError",
    "TuningError",
    "TvmconvError",
    "WeightsError",
    "one_line",
]

_LONGEST = 600


class TvmconvError(Exception):
    """Base of every error that tvmconv raises on purpose."""


class ConfigError(TvmconvError, ValueError):
    """A layer argument is wrong. The message is Keras' own where Keras has one."""


class ConfigTypeError(ConfigError, TypeError):
    """A layer argument is wrong where Keras raises a TypeError."""


class TargetError(TvmconvError, ValueError):
    """A target is unknown, or this machine cannot use it."""


class WeightsError(TvmconvError, ValueError):
    """A file or an array does not hold the weights that the layer needs."""


class InputError(TvmconvError, ValueError):
    """An input array does not fit the layer."""


class ScheduleError(TvmconvError, RuntimeError):
    """A tiling cannot be computed. Where it is a rule's, this is a bug of tvmconv."""


class BuildError(TvmconvError, RuntimeError):
    """TVM, the C compiler or the linker failed."""


class ArtifactError(TvmconvError, RuntimeError):
    """An artifact is missing, damaged, foreign, or made for another version of the interface."""


class TuningError(TvmconvError, RuntimeError):
    """A tuning run cannot go on. One failed candidate is a record, not this error."""


class DeviceError(TvmconvError, RuntimeError):
    """Another machine cannot be reached, or fails in what it is asked to do."""


def one_line(text: str) -> str:
    """Collapse ``text`` to one printable line, so that a file cannot write to the terminal."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 4] + " ..."
